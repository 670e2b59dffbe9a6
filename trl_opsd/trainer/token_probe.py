# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Probe of single tokens: the first rollouts of a training, scored anew as the weights change."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_opsd.batches.distillation_batch import KEY
from trl_opsd.token_report.record import PROBE, Line, forget_after
from trl_opsd.token_report.token_log import TokenLog


if TYPE_CHECKING:
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer

logger = get_logger(__name__)

FACTS = ("group", "rewards", "success", "leak")  # of a line: what no forward tells


class TokenProbe(TrainerCallback):
    """
    Scores the same completions under the same prompts before the training, every `log_tokens_probe` steps and after
    the last one. No weight, metric or random number of the training changes.

    Args:
        trainer ([`OPSDTrainer`]): Whose rollouts these are.
        log ([`TokenLog`]): Makes the records; another one than that of the training's own rollouts.
    """

    def __init__(self, trainer: "OPSDTrainer", log: TokenLog):
        self.trainer, self.log, self.every = trainer, log, trainer.args.log_tokens_probe
        self.batches: list[dict[str, Any]] | None = None  # micro-batches with flat keys, on the CPU
        self.facts: dict[int, Line] = {}  # by the index of the rollout

    def begin(self, micro_batches: list[dict[str, Any]]) -> None:
        """
        Keep the first rollouts of a training and score them. A collective; nothing happens later on.

        Args:
            micro_batches (`list[dict]`): Those of the first generation batch, whose rollouts are in `collected`.
        """
        if not self.every or self.batches is not None:
            return
        # As many on each process, as their forwards are collectives
        wanted = max(gather_object([self._enough(micro_batches)]))
        self.log.know(micro_batches[0][KEY].generation, self.trainer.collected.known())
        self.batches = [_on(self.trainer.flat_batch(batch), "cpu") for batch in micro_batches[:wanted]]
        self.score(self.trainer.state.global_step)

    def score(self, step: int) -> None:
        """Record the rollouts under the weights after a step. A collective."""
        trainer, first = self.trainer, not self.facts
        for batch in trainer.planned([_on(batch, trainer.accelerator.device) for batch in self.batches]):
            trainer.score_tokens(batch, self.log, self.log.rows_of(batch[KEY]))
        for line in self.log.lines:
            if first:
                self.facts[line["index"]] = _facts(line)
            else:
                _set_facts(line, self.facts[line["index"]])
        self.log.flush(step, PROBE)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            forget_after(args.output_dir, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        if self.batches is not None and (last or state.global_step % self.every == 0):
            self.score(state.global_step)

    def save(self, folder: Path) -> None:
        """Write the rollouts of this process into a checkpoint."""
        if self.batches is not None:
            torch.save({"batches": self.batches, "facts": self.facts}, self._file(folder))

    def load(self, folder: Path) -> None:
        """Restore what [`save`] wrote. A collective."""
        file = self._file(folder)
        state = torch.load(file, map_location="cpu", weights_only=True) if file.is_file() else {}
        counts = set(gather_object([len(state.get("batches", ()))]))
        if counts != {0} and len(counts) == 1:
            self.batches, self.facts = state["batches"], state["facts"]
        elif self.every:
            logger.warning(
                f"The checkpoint {folder} holds no probe that fits this run: `log_tokens_probe` begins anew, with the "
                "next rollouts."
            )

    def _enough(self, micro_batches: list[dict[str, Any]]) -> int:
        """Micro-batches that hold as many rollouts as the log wants."""
        rows = 0
        for count, batch in enumerate(micro_batches):
            if rows >= self.log.quota:
                return count
            rows += len(batch[KEY].mask)
        return len(micro_batches)

    def _file(self, folder: Path) -> Path:
        return folder / f"_token_probe_{self.trainer.args.process_index}.pt"  # `_`: not pushed, as it holds contexts


def _facts(line: Line) -> Line:
    contexts = {name: view["prompt"]["context"] for name, view in line["views"].items()}
    return {**{name: line[name] for name in FACTS}, "contexts": contexts}


def _set_facts(line: Line, facts: Line) -> None:
    line.update({name: facts[name] for name in FACTS})
    for name, context in facts["contexts"].items():
        line["views"][name]["prompt"]["context"] = context


def _on(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """Copy of a batch on a device."""
    return {
        name: value.detach().to(device, copy=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
