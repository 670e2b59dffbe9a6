# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
How the teacher answers, follows the student, and is saved and restored.

Where its weights live is the question of `teacher_weights.py`; here `ema` averages, `snapshot` copies, and the rest
stand still.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from trl_opsd.config import OPSDConfig
from trl_opsd.forward import model_head
from trl_opsd.kernels import Head
from trl_opsd.teacher_weights import AdapterTensors, SeparateModel, make_weights


STATE_FILE, WEIGHTS_FILE = "teacher_state.json", "teacher.safetensors"


class Teacher:
    """
    The teacher of one run.

    Args:
        args ([`OPSDConfig`]): `teacher_*` options.
        core (`nn.Module`): The student before any wrapping, with its PEFT wrapper if it has one.
        accelerator (`Accelerator`): Wraps a teacher that is a model of its own.
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
        self.kind = args.teacher_model_kind
        self.rate, self.sync_steps = args.teacher_update_rate, args.teacher_sync_steps
        self.core, self.float32_head = core, args.cast_lm_head_to_fp32
        self.head_of_pass: Head | None = None
        self.moves = 0
        # `modules_to_save=["lm_head"]`: asked here, as PEFT turns `requires_grad` off while an adapter is
        self.adapter_has_head = hasattr(core, "peft_config") and any(
            param.requires_grad for param in core.get_base_model().get_output_embeddings().parameters()
        )
        self.weights = make_weights(args, core, accelerator, tokenizer, patch)
        is_copy = isinstance(self.weights, SeparateModel) and self.kind == "base"
        self.fingerprint = _fingerprint(self.weights.tensors) if is_copy else None

    @contextmanager
    def answering(self, model: nn.Module) -> Iterator[nn.Module]:
        """
        The model to call as the teacher: without gradient and without dropout, for just this block.

        Args:
            model (`nn.Module`): The wrapped student.
        """
        with torch.no_grad(), self.weights.active(model, self.core) as teacher, _without_dropout(teacher):
            yield teacher
            self._remember_head()

    def _remember_head(self) -> None:
        # The adapter's own head is another one with the adapter off or with the copied tensors: take it while they are
        # in place
        own = self.adapter_has_head and not isinstance(self.weights, SeparateModel)
        head = model_head(self.core.get_base_model(), self.float32_head) if own else None
        # Detached where the tensors in place are swapped back; elsewhere not, as ZeRO-3 gathers parameters by identity
        swapped = isinstance(self.weights, AdapterTensors)
        self.head_of_pass = _detached(head) if head is not None and swapped else head

    @property
    def version(self) -> int | None:
        """What it says stays the same as long as this number does; `None` where it moves with the student."""
        return None if self.kind == "live" else self.moves

    @property
    def model(self) -> nn.Module:
        """The model whose weights answer, unwrapped: the student's or one of its own."""
        return self.weights.core if isinstance(self.weights, SeparateModel) else self.core

    def head(self) -> Head | None:
        """The teacher's head, `None` for the student's own. To be called inside the student's forward."""
        return self.head_of_pass or self.weights.head()

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """
        Update a moving teacher after an optimizer step.

        Args:
            step (`int`): Optimizer steps taken so far.
        """
        if self.kind not in ("ema", "snapshot") or step % self.sync_steps:
            return
        student = dict(self.core.named_parameters())
        for name, tensor in self.weights.tensors.items():
            value = student[name].detach().to(tensor)
            tensor.lerp_(value, self.rate) if self.kind == "ema" else tensor.copy_(value)
        self.moves += 1

    def save(self, folder: Path) -> None:
        """Write what is needed to go on into `folder`: the kind, and the weights of a teacher that moves."""
        (folder / STATE_FILE).write_text(json.dumps({"kind": self.kind, "fingerprint": self.fingerprint}))
        if self.kind in ("ema", "snapshot"):
            save_file(
                {name: tensor.contiguous() for name, tensor in self.weights.tensors.items()}, folder / WEIGHTS_FILE
            )

    def load(self, folder: Path) -> None:
        """Take up the state that [`Teacher.save`] wrote.

        Raises:
            ValueError: If `folder` holds no such state, that of another kind, or that of other start weights.
        """
        state_file = folder / STATE_FILE
        state = json.loads(state_file.read_text()) if state_file.exists() else {"kind": None, "fingerprint": None}
        moves = self.kind in ("ema", "snapshot")
        if moves and (state["kind"] != self.kind or not (folder / WEIGHTS_FILE).exists()):
            raise ValueError(
                f"The checkpoint {folder} holds no state of an {self.kind!r} teacher (its teacher is "
                f"{state['kind']!r}). Resume with the `teacher_model_kind` it was trained with, or start a new run "
                "from its weights (pass the folder as the model, without `resume_from_checkpoint`): the teacher then "
                "starts from them."
            )
        if self.fingerprint is not None and state["fingerprint"] not in (None, self.fingerprint):
            raise ValueError(
                f"The checkpoint {folder} was trained against another `base` teacher: the weights that this run "
                "started from are not the ones that run started from. Resume with the same `model` as the first time."
            )
        if moves:
            saved = load_file(folder / WEIGHTS_FILE)
            if saved.keys() != self.weights.tensors.keys():
                raise ValueError(
                    f"The teacher in {folder} has other parameters than this model. Resume with the same one."
                )
            for name, tensor in self.weights.tensors.items():
                tensor.copy_(saved[name])


class TeacherFollows(TrainerCallback):
    """Moves the teacher after each optimizer step, before a checkpoint of that step is written."""

    def __init__(self, teacher: Teacher):
        self.teacher = teacher

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.teacher.follow(state.global_step)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _detached(head: Head) -> Head:
    bias = None if head.bias is None else head.bias.detach()
    return Head(head.weight.detach(), bias, head.scale, head.softcap, head.float32)


def _fingerprint(tensors: dict[str, torch.Tensor]) -> float:
    return sum(float(tensor.sum(dtype=torch.float64)) for tensor in tensors.values())
