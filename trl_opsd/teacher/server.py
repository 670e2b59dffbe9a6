# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Teacher on a server: any vLLM server scores the student's completions under the teacher's prompt, by prefill alone.

Rows are sent when a generation batch is planned, and their scores waited for in the micro-batch that needs them, so
that the server works while earlier micro-batches train.

Legend: R rows that the teacher reads, C completion tokens, T distilled tokens of the R rows, k likeliest tokens.
"""

import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from trl_opsd.batches.teacher_batch import Outputs, TeacherBatch
from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.teacher.server_check import ServerFacts, check_servers
from trl_opsd.teacher.server_client import ServerClient, ServerOptions, check_urls
from trl_opsd.teacher.server_scores import TokenScores, score
from trl_opsd.teacher.server_writing import sampling, written
from trl_opsd.teacher.teacher import Patch, Teacher
from trl_opsd.teacher.weights import TeacherWeights


MODES = (
    "use `distillation_mode='topk_logits'` with `distillation_topk` and `distillation_topk_source='teacher'`, or "
    "`distillation_mode='sampled_token'` with `distillation_alpha=1.0`"
)


class NoWeights(TeacherWeights):
    """Weights that are elsewhere, in the place of a teacher's."""

    def active(self, model: nn.Module) -> Any:
        raise ValueError(
            "The teacher is on a server (`teacher_model_kind='server'`), so this process has no weights of it, and its "
            "logits can't be shown. Use another `teacher_model_kind` for this, such as 'checkpoint' with the same "
            "model."
        )

    def head(self) -> None:
        return None


class Server(Teacher):
    """Model on one or several vLLM servers, with the same vocabulary; frozen, or the student as TRL synchronises it."""

    name = "server"
    description = "a model on a server"
    options = {"teacher_model_server_url": None, "teacher_server_options": None}
    starts_as_student = False
    teaches_bare_rows = True
    is_local = False
    unknown_stats = ("teacher_entropy",)

    @classmethod
    def check(cls, config: Any, synced_by_method: bool) -> None:
        super().check(config, synced_by_method)
        options = ServerOptions.of(config.teacher_server_options)
        if not config.teacher_model_server_url:
            raise ValueError(
                "`teacher_model_kind='server'` needs `teacher_model_server_url`, the address of a vLLM server or a "
                "list of several that serve the same model."
            )
        check_urls(config.teacher_model_server_url)
        _check_loss(config)
        _check_records(config)
        _check_live(config, options)

    def make_weights(self, tokenizer: PreTrainedTokenizerBase, patch: Patch) -> TeacherWeights:
        options = ServerOptions.of(self.args.teacher_server_options)
        self.live = options.live
        self.num_updates = None if self.live else 0
        self.topk = self.args.distillation_topk or 0
        self._sent: WeakKeyDictionary[TeacherBatch, list[Future | None]] = WeakKeyDictionary()
        self._waited, self._retries_told = 0.0, 0
        embeddings = self.core.get_output_embeddings()
        rows = getattr(embeddings.weight, "ds_shape", embeddings.weight.shape)[0]  # ZeRO-3 leaves empty tensors
        self.vocabulary = int(rows)
        with raise_on_all_ranks(self.accelerator, "the teacher's server"):
            first = self.accelerator.process_index
            self.client = ServerClient(self.args.teacher_model_server_url, options, first)
            test = self.args.teacher_self_test
            self.facts: ServerFacts = check_servers(self.client, tokenizer, self.topk, self.vocabulary, test)
        return NoWeights(self.core, self.args.cast_lm_head_to_fp32)

    @property
    def max_length(self) -> int | None:
        return self.facts.max_length

    def state(self) -> dict[str, Any]:
        return {**super().state(), "probe_logps": None if self.live else self.facts.probe_logps}

    def restore(self, state: dict[str, Any], folder: Path) -> None:
        saved, now = state.get("probe_logps"), self.facts.probe_logps
        if self.live or saved is None or not self.args.teacher_self_test:
            return
        gaps = [abs(one - other) for one, other in zip(saved, now, strict=False)]
        if len(saved) != len(now) or max(gaps, default=0.0) > 2 * self.client.options.tolerance:
            raise ValueError(
                f"The checkpoint {folder} was trained against another teacher: the servers of "
                "`teacher_model_server_url` score the probe by more than twice `tolerance` differently. Serve the "
                "model of the first time."
            )

    # Requests

    def prefetch(self, batches: list[TeacherBatch]) -> None:
        with raise_on_all_ranks(self.accelerator, "the teacher's server"):
            for batch in batches:
                if not batch.live:
                    self._begin(batch)

    def _begin(self, batch: TeacherBatch) -> list[Future | None]:
        """Requests of a batch, sent unless they have been."""
        if batch not in self._sent:
            self._sent[batch] = [self._send(ids, start) for ids, start in _sequences(batch)]
        return self._sent[batch]

    def _send(self, ids: list[int], start: int) -> Future | None:
        """Ask for the scores of a row; a row without tokens has none to ask for."""
        if start == len(ids):
            return None
        return self.client.submit(score, self.client, self.facts.model, ids, start, self.topk, self.vocabulary)

    def answer(self, batch: TeacherBatch) -> Outputs:
        begin = time.monotonic()
        with raise_on_all_ranks(self.accelerator, "the teacher's server"):
            try:
                rows = [one and one.result() for one in self._begin(batch)]
            except BaseException:
                self.client.close()
                raise
        batch.uses_left -= 1
        if batch.uses_left <= 0:
            del self._sent[batch]
        self._waited += time.monotonic() - begin
        return _at_tokens(rows, batch, self.topk, self.accelerator.device)

    def write(self, prompts: list[list[int]], options: dict[str, Any], ends: list[int]) -> list[list[int]]:
        how = sampling(options)
        seeds = torch.randint(2**31, (len(prompts),)).tolist()
        pairs = zip(prompts, seeds, strict=True)
        texts = [self.client.submit(written, self.client, self.facts.model, ids, how, ends, one) for ids, one in pairs]
        return [text.result() for text in texts]

    def metrics(self) -> dict[str, tuple[float, float]]:
        waited, self._waited = self._waited, 0.0
        retries, self._retries_told = self.client.retried - self._retries_told, self.client.retried
        return {"teacher_server/wait_seconds": (waited, 1.0), "teacher_server/retries": (float(retries), 1.0)}


def _sequences(batch: TeacherBatch) -> list[tuple[list[int], int]]:
    """Token ids of each row, prompt and completion, and where the completion begins."""
    if any(batch.pixels):
        raise ValueError(
            "A row has images, and a teacher on a server is sent token ids alone. Use another `teacher_model_kind`."
        )
    prompts = [ids[kept.bool()].tolist() for ids, kept in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
    completions = zip(batch.completion_ids, batch.completion_mask, strict=True)
    rows = [ids[kept.bool()].tolist() for ids, kept in completions]
    return [(prompts[own] + ids, len(prompts[own])) for own, ids in zip(batch.prompt_of.tolist(), rows, strict=True)]


def _at_tokens(rows: list[TokenScores | None], batch: TeacherBatch, topk: int, device: torch.device) -> Outputs:
    """Scores of all rows at the batch's distilled tokens; 0 where a row was not asked for."""
    length = batch.completion_ids.shape[1]
    label_logps = torch.zeros(len(rows), length)
    ids, logps = torch.zeros(len(rows), length, topk, dtype=torch.long), torch.zeros(len(rows), length, topk)
    for row, scores in enumerate(rows):
        if scores is not None:
            filled = slice(len(scores.label_logps))
            label_logps[row, filled], ids[row, filled] = scores.label_logps, scores.ids.long()
            logps[row, filled] = scores.logps
    tokens = batch.tokens.cpu()
    return tuple(values.flatten(0, 1)[tokens].to(device) for values in (label_logps, ids, logps))


def _check_loss(config: Any) -> None:
    """Refuse a divergence that needs more than the teacher's likeliest tokens at temperature 1."""
    mode, source = config.distillation_mode, config.distillation_topk_source
    if mode == "full_logits" or (mode == "topk_logits" and source != "teacher"):
        given = f"`distillation_mode={mode!r}`" + ("" if mode == "full_logits" else f" with the set of the {source}")
        raise ValueError(
            f"A server tells the log-probabilities of the sampled tokens and of its own likeliest ones, and {given} "
            f"needs others: {MODES}."
        )
    if config.distillation_target is not None:
        raise ValueError(
            "`distillation_target` mixes whole distributions of the views, which a server does not give: leave it out."
        )
    spec = config.divergence_spec
    own = config.temperature if mode == "sampled_token" else spec.temperature
    temperature = spec.teacher_temperature or own
    if temperature != 1.0:
        other = "" if mode == "sampled_token" else ", or `distillation_temperature=1.0` for both sides"
        raise ValueError(
            f"A server's log-probabilities are those of temperature 1, and the teacher's would be {temperature:g}, "
            "which takes the logits of the whole vocabulary. Set `distillation_teacher_temperature=1.0` for the teacher"
            f" alone{other}."
        )


def _check_records(config: Any) -> None:
    """Refuse records that show the teacher's logits."""
    if config.log_tokens:
        raise ValueError(
            f"`log_tokens={config.log_tokens}` shows what the teacher would rather write, from its logits, which a "
            "server does not give. Leave it out."
        )


def _check_live(config: Any, options: ServerOptions) -> None:
    """Refuse a live teacher whose server TRL does not synchronise, and a frozen one whose server it does."""
    synced = config.use_vllm and config.vllm_mode == "server"
    address = config.vllm_server_base_url or f"http://{config.vllm_server_host}:{config.vllm_server_port}"
    same = synced and any(_place(url) == _place(address) for url in config.teacher_model_server_url)
    if options.live and not (same and len(config.teacher_model_server_url) == 1):
        raise ValueError(
            "`live: true` of `teacher_server_options` means the server that TRL samples from and synchronises with the "
            "student: it needs `use_vllm=True`, `vllm_mode='server'` (whose weight sync runs over NCCL, between GPUs) "
            "and that server's address alone as `teacher_model_server_url`. Otherwise use `teacher_model_kind='live'`."
        )
    if same and not options.live:
        raise ValueError(
            f"TRL writes the student's weights into the server {address} after each step, so that it is no frozen "
            "teacher. Start another server for the teacher, or set `live: true` in `teacher_server_options`."
        )
    steps = (config.steps_per_generation or 1) * config.num_iterations
    if options.live and steps != config.gradient_accumulation_steps:
        raise ValueError(
            "`live: true` of `teacher_server_options` needs a generation batch for each optimizer step, as the server "
            "has the weights of the sampling: set `num_iterations=1` and `steps_per_generation` to "
            f"`gradient_accumulation_steps` ({config.gradient_accumulation_steps}), or use "
            "`teacher_model_kind='live'`."
        )


def _place(url: str) -> str:
    """Host and port of an address, by which servers are told apart."""
    place = url.split("://", 1)[-1].split("/", 1)[0]
    return place.replace("localhost", "127.0.0.1").replace("0.0.0.0", "127.0.0.1")
