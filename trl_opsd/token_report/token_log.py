# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Recorder of single tokens: a few rollouts of each logged step, from the forwards that train on them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase, TrainerState

from trl_opsd.batches.distillation_batch import KEY, DistillationBatch
from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.kernels import TOP
from trl_opsd.prompts.teacher_prompt import context_spans
from trl_opsd.rollouts.rollout import Rollout
from trl_opsd.rollouts.view import View
from trl_opsd.token_report.record import STEP, Line, path_of, pieces, rounded, write


# What is known of a rollout beside its tensors: itself, its views, and what it gives away of them
Known = tuple[Rollout, list[View], str | None]


class TokenLog:
    """
    Records `log_tokens` rollouts of each logged step, those that have a view first.

    Args:
        args ([`OPSDConfig`]): Options.
        accelerator (`Accelerator`): Gathers what the processes recorded.
        tokenizer (`PreTrainedTokenizerBase`): From ids to text.
        stops (`Sequence[int]`): Tokens that end an answer of the student or of the teacher.
    """

    def __init__(
        self, args: OPSDConfig, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]
    ):
        self.args, self.accelerator, self.tokenizer, self.stops = args, accelerator, tokenizer, list(stops)
        each, rest = divmod(args.log_tokens, accelerator.num_processes)
        self.quota = each + (accelerator.process_index < rest)
        self.lines: list[Line] = []
        self.known: tuple[int, Mapping[int, Known]] = (0, {})
        self.active = True  # not while a pre-flight takes losses that train nothing

    def wants(self, state: TrainerState) -> bool:
        """Whether the step that is being taken will be logged: the same on every process."""
        step = state.global_step + 1
        first = step == 1 and self.args.logging_first_step
        return self.active and self.args.log_tokens > 0 and (first or step % max(int(state.logging_steps), 1) == 0)

    def know(self, generation: int, known: Mapping[int, Known]) -> None:
        """
        Say what is known of the rollouts of a generation batch beside their tensors, until the next one is there.

        Args:
            generation (`int`): Number of the batch.
            known (`dict[int, Known]`): By the index of the rollout within it.
        """
        self.known = generation, known

    def rows_of(self, batch: DistillationBatch) -> list[int]:
        """Rows of a micro-batch to record: as many as are missing, with distilled tokens before those without."""
        taught = batch.mask.sum(1).tolist()
        rows = sorted(range(len(taught)), key=lambda row: taught[row] == 0)
        return sorted(rows[: self.quota - len(self.lines)])

    def tokens_of(self, batch: DistillationBatch, rows: list[int]) -> torch.Tensor:
        """Distilled tokens of these rows, counted along the rows of the micro-batch."""
        chosen = torch.zeros_like(batch.mask)
        chosen[rows] = batch.mask[rows]
        return chosen.flatten().nonzero().squeeze(1)

    def add(
        self,
        rows: list[int],
        inputs: Mapping[str, Any],
        stats: Mapping[str, torch.Tensor],
        top: Mapping[str, torch.Tensor],
    ) -> None:
        """
        Record rows of a micro-batch.

        Args:
            rows (`list[int]`): Those of [`rows_of`].
            inputs (`dict`): TRL's micro-batch, with its distillation part under `KEY`.
            stats (`dict[str, torch.Tensor]`): Statistics of shape `(K, B, C)`, those of the student `(B, C)`.
            top (`dict[str, torch.Tensor]`): From [`~trl_opsd.kernels.top_tokens`], at [`tokens_of`] these rows.
        """
        batch = inputs[KEY]
        values = {name: value.float().cpu() for name, value in stats.items()}
        lists = {name.removeprefix(TOP): value.cpu() for name, value in top.items()}
        distilled, first = batch.mask.bool().cpu(), 0
        known = self.known[1] if self.known[0] == batch.generation else {}  # not of a batch that was resumed
        for row in rows:
            count = int(distilled[row].sum())
            own = {name: value[..., first : first + count, :] for name, value in lists.items()}
            self.lines.append(self._line(row, inputs, batch, values, own, known.get(int(batch.index[row]))))
            first += count

    def flush(self, step: int, kind: str = STEP) -> None:
        """Write what was recorded of a step, or of the probe after it. A collective."""
        head, lines = self.gathered()
        if self.accelerator.is_main_process and lines:
            write(path_of(self.args.output_dir, step, kind), {"step": step, **head}, lines)

    def gathered(self) -> tuple[Line, list[Line]]:
        """Head and rollouts of a record: all that the processes have recorded since the last time. A collective."""
        lines, self.lines = gather_object(self.lines), []
        lines.sort(key=lambda line: line["index"])
        tops = [top["ids"] for line in lines for top in _tops(line)]
        ids = sorted({token for of_list in tops for at in of_list if at for token in at}.union(self.stops))
        strings = {str(token): self._token(token) for token in ids}
        return {"temperature": self.args.temperature, "stops": self.stops, "strings": strings}, lines

    def _line(
        self,
        row: int,
        inputs: Mapping[str, Any],
        batch: DistillationBatch,
        stats: Mapping[str, torch.Tensor],
        top: Mapping[str, torch.Tensor],
        known: Known | None,
    ) -> Line:
        """The record of one row."""
        length = int(inputs["completion_mask"][row].sum())
        ids = inputs["completion_ids"][row, :length].tolist()
        distilled = batch.mask[row, :length].bool().tolist()
        rollout, views, leak = known or (None, [], None)
        prompt_ids = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist()

        def column(name: str, view: int | None = None) -> list[float | None]:
            values = stats[name][row] if view is None else stats[name][view, row]
            return [rounded(v) if there else None for v, there in zip(values[:length].tolist(), distilled, strict=True)]

        line = {
            "index": int(batch.index[row]),
            "group": rollout.group if rollout else None,
            "rewards": {name: rounded(value) for name, value in rollout.rewards.items()} if rollout else {},
            "success": bool(batch.success[row]) if rollout and rollout.rewards else None,
            "leak": leak,
            "student_prompt": {"ids": prompt_ids, "text": self._text(prompt_ids)},
            "ids": ids,
            "texts": pieces(ids, self._text),
            "written": batch.loss_mask[row, :length].int().tolist(),
            "p": column("student_logps"),
            "entropy": column("student_entropy"),
            "views": {},
        }
        if top:
            of_views = {name: top["student/q"][k] for k, name in enumerate(batch.views)}
            line["top"] = _lists(distilled, top["student/ids"], top["student/p"], of_views)
        if "advantage" in stats:
            line["advantage"] = column("advantage")
        for k, (name, view) in enumerate(batch.views.items()):
            if view.weight[row] == 0:
                continue
            read = view.prompt_ids[row][view.prompt_mask[row].bool()].tolist()
            text = self._text(read)
            own = next((one for one in views if one.name == name), None)
            line["views"][name] = {
                "prompt": {"ids": read, "text": text, "context": context_spans(text, own) if own else []},
                "start": int(view.start[row]),
                "share": [rounded(share) for share in batch.shares[k, row, :length].tolist()],
                "q": column("teacher_logps", k),
                "entropy": column("teacher_entropy", k),
                "divergence": column("divergence", k),
                "loss": column("loss", k),
            }
            if top:
                lists = (top[f"teacher/{part}"][k] for part in ("ids", "p", "q"))
                line["views"][name]["top"] = _lists(distilled, *lists)
        return line

    def _token(self, token: int) -> str:
        """Text of a token by itself, empty where it is a part of a character."""
        text = self._text([token])
        return "" if text and not text.strip("\ufffd") else text

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _tops(line: Line) -> list[dict[str, Any]]:
    """All lists of likeliest tokens of a rollout."""
    return [part["top"] for part in (line, *line["views"].values()) if "top" in part]


def _lists(distilled: list[bool], ids: torch.Tensor, p: torch.Tensor, q: Any) -> dict[str, Any]:
    """Lists of the likeliest tokens over a completion, null where nothing is distilled."""

    def spread(values: torch.Tensor, numbers: bool = True) -> list[list | None]:
        rows = iter(values.tolist())
        found = ([rounded(value) for value in next(rows)] if numbers else next(rows) for _ in range(sum(distilled)))
        return [next(found) if there else None for there in distilled]

    of_teacher = {name: spread(values) for name, values in q.items()} if isinstance(q, dict) else spread(q)
    return {"ids": spread(ids, numbers=False), "p": spread(p), "q": of_teacher}
