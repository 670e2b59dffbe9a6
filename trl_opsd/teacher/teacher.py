# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
How the teacher answers, follows the student, and is saved and restored.

Where its weights live is the question of `teacher_weights.py`; here `ema` averages, `snapshot` copies, and the rest
stand still.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.engines import Whole
from trl_opsd.kernels import Head
from trl_opsd.teacher.weights import CopiedWeights, SeparateModel, make_weights


STATE_FILE = "teacher_state.json"


class Teacher:
    """
    The teacher of one run.

    Args:
        args ([`OPSDConfig`]): `teacher_*` options.
        core (`nn.Module`): The student before any wrapping, with its PEFT wrapper if it has one.
        accelerator (`Accelerator`): Knows the engine, and wraps a teacher that is a model of its own.
        tokenizer (`PreTrainedTokenizerBase`): The student's, to compare vocabularies with a `checkpoint` teacher.
        patch (`Callable[[PreTrainedModel], None]`): Gives a model the forward that the trainer calls.

    Raises:
        ValueError: If the kind does not exist for this model or engine.
    """

    def __init__(
        self,
        args: OPSDConfig,
        core: nn.Module,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        patch: Callable[[PreTrainedModel], None],
    ):
        self.args, self.kind, self.core, self.accelerator = args, args.teacher_model_kind, core, accelerator
        self.moves = 0
        self.weights = make_weights(args, core, accelerator, tokenizer, patch)

    def attach(self) -> None:
        """Take the start weights, where that had to wait for the engine: to be called once it has the model, and before
        a checkpoint is loaded into it."""
        if isinstance(self.weights, CopiedWeights):
            self.weights.attach()

    @contextmanager
    def teacher_forward(self, model: nn.Module) -> Iterator[nn.Module]:
        """
        The model to call as the teacher: without gradient and without dropout, for just this block.

        Args:
            model (`nn.Module`): The wrapped student.
        """
        with torch.no_grad(), self.weights.active(model) as teacher, without_dropout(teacher):
            yield teacher

    @property
    def version(self) -> int | None:
        """What it says stays the same as long as this number does; `None` where it moves with the student."""
        return None if self.kind == "live" else self.moves

    @property
    def model(self) -> nn.Module:
        """The model whose weights answer, unwrapped: the student's or one of its own."""
        return self.weights.core if isinstance(self.weights, SeparateModel) else self.core

    def head(self) -> Head | None:
        """The teacher's head, `None` for the student's own. To be called inside the student's forward, by all ranks."""
        return self.weights.head()

    def update_state(self, step: int) -> None:
        """
        Update a moving teacher after an optimizer step.

        Args:
            step (`int`): Optimizer steps taken so far.
        """
        if self.kind in ("ema", "snapshot") and step % self.args.teacher_sync_steps == 0:
            self.weights.update_state(self.args.teacher_update_rate if self.kind == "ema" else 1.0)
            self.moves += 1

    def save(self, folder: Path) -> None:
        """
        Write what is needed to go on into the checkpoint `folder`: the kind, and the weights of a teacher that moves,
        sharded where the engine shards. All ranks call it.
        """
        state = self._state()
        if self.args.should_save:
            (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
        if self.kind in ("ema", "snapshot"):
            self.weights.shards.save(folder, self.weights.params, self.weights.parts, self.args.should_save)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """
        Take up the state that [`Teacher.save`] wrote. All ranks call it.

        Raises:
            ValueError: If `folder` holds no such state, that of another kind, engine or model, or that of other start
                weights.
        """
        own, moves = self._state(), self.kind in ("ema", "snapshot")
        path = folder / STATE_FILE
        state = json.loads(path.read_text()) if path.exists() else dict.fromkeys(own)
        if moves and state["kind"] != self.kind:
            raise ValueError(_refusal(folder, f"holds no state of an {self.kind!r} teacher but of {state['kind']!r}"))
        if moves and state["sharded_by"] != own["sharded_by"]:
            problem = f"was written under {state['sharded_by']}, and this run is under {own['sharded_by']}"
            raise ValueError(_refusal(folder, problem))
        start = state["square_sum_of_start"]
        if None not in (start, own["square_sum_of_start"]) and not _same(start, own["square_sum_of_start"]):
            raise ValueError(
                f"The checkpoint {folder} was trained against another `base` teacher: the weights that this run "
                "started from are not the ones that run started from. Resume with the same `model` as the first time."
            )
        if moves:
            try:
                self.weights.shards.load(folder, self.weights.params, self.weights.parts)
            except (ValueError, OSError, SafetensorError) as error:
                raise ValueError(_refusal(folder, f"does not fit: {error}")) from error

    def _state(self) -> dict[str, Any]:
        copied = isinstance(self.weights, CopiedWeights)
        state = {"kind": self.kind, "sharded_by": self.weights.shards.name if copied else Whole.name}
        return state | {"square_sum_of_start": self._square_sum() if copied and self.kind == "base" else None}

    def _square_sum(self) -> float:
        square_sum = self.weights.square_sum()
        if type(self.weights.shards) is not Whole:
            square_sum = self.accelerator.reduce(square_sum)
        return square_sum.item()


def _same(first: float, second: float) -> bool:
    """Whether two sums are the same but for the order in which they were added up."""
    return math.isclose(first, second, rel_tol=1e-11)


def _refusal(folder: Path, problem: str) -> str:
    return (
        f"The state of the teacher in the checkpoint {folder} {problem}. Resume with the `teacher_model_kind`, model, "
        "engine and number of processes that it was trained with, or start the teacher afresh: in a new run from the "
        "checkpoint's weights (pass the folder as the model, without `resume_from_checkpoint`) it starts from them."
    )


class TeacherUpdateCallback(TrainerCallback):
    """Moves the teacher after each optimizer step, if it may, before a checkpoint of that step is written."""

    def __init__(self, teacher: Teacher, may_move: Callable[[], bool]):
        self.teacher, self.may_move = teacher, may_move

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.may_move():
            self.teacher.update_state(state.global_step)


@contextmanager
def live_forward(model: nn.Module) -> Iterator[nn.Module]:
    """The student as a reader, in the teacher's way: without gradient and without dropout."""
    with torch.no_grad(), without_dropout(model):
        yield model


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Modules that train do not drop anything in this block."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
