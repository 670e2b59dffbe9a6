# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Whose weights answer for the teacher, how they follow the student, how they are saved and restored.

Where the weights live is one question (the student's own, the student's without its adapter, a copy of the adapter's
tensors, a model of their own), how they move another (`ema` averages, `snapshot` copies, the rest stand still). The
classes below answer the first, [`Teacher`] the second.
"""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import create_model_from_path, use_adapter

from trl_opsd.config import OPSDConfig
from trl_opsd.forward import model_head
from trl_opsd.kernels import Head


STATE_FILE, WEIGHTS_FILE = "teacher_state.json", "teacher.safetensors"


class SameWeights:
    """The student's own weights, with its adapter or, for `adapter=False`, without it."""

    def __init__(self, adapter: bool = True):
        self.adapter = adapter
        self.tensors: dict[str, torch.Tensor] = {}

    @contextmanager
    def active(self, model: nn.Module, core: nn.Module) -> Iterator[nn.Module]:
        with nullcontext() if self.adapter else use_adapter(core, None):
            yield model

    def head(self) -> Head | None:
        return None


class AdapterTensors:
    """A copy of the trainable tensors of a PEFT student, put in their place for the teacher's forward only.

    A second adapter would be saved with the model, toggle `requires_grad` when it is switched to, and come back twice
    on resume (trl#6311); swapping tensors leaves no trace.
    """

    def __init__(self, core: nn.Module, dtype: torch.dtype | None):
        self.parameters = {name: param for name, param in core.named_parameters() if param.requires_grad}
        self.tensors = {
            name: param.detach().clone().to(dtype or param.dtype) for name, param in self.parameters.items()
        }

    @contextmanager
    def active(self, model: nn.Module, core: nn.Module) -> Iterator[nn.Module]:
        own = {name: param.data for name, param in self.parameters.items()}
        for name, param in self.parameters.items():
            param.data = self.tensors[name].to(param.dtype)
        try:
            yield model
        finally:
            for name, param in self.parameters.items():
                param.data = own[name]

    def head(self) -> Head | None:
        return None


class SeparateModel:
    """A model of its own, frozen, in evaluation mode, wrapped like TRL's reference model."""

    def __init__(self, model: PreTrainedModel, accelerator: Accelerator, float32_head: bool):
        self.core, self.float32_head = model.requires_grad_(False).eval(), float32_head
        self.tensors = dict(model.named_parameters())
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.model = prepare_deepspeed(model, accelerator)
        elif accelerator.distributed_type == DistributedType.FSDP:
            self.model = prepare_fsdp(model, accelerator)
        else:
            self.model = accelerator.prepare_model(model, evaluation_mode=True)

    @contextmanager
    def active(self, model: nn.Module, core: nn.Module) -> Iterator[nn.Module]:
        yield self.model

    def head(self) -> Head | None:
        return model_head(self.core, self.float32_head)


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
        self.kind, self.rate, self.sync_steps = (
            args.teacher_model_kind,
            args.teacher_update_rate,
            args.teacher_sync_steps,
        )
        self.core = core
        self.head_of_pass: Head | None = None
        # `modules_to_save=["lm_head"]`: asked here, as PEFT turns `requires_grad` off while an adapter is
        self.adapter_has_head = hasattr(core, "peft_config") and any(
            param.requires_grad for param in core.get_base_model().get_output_embeddings().parameters()
        )
        self.weights = self._make_weights(args, core, accelerator, tokenizer, patch)
        is_copy = isinstance(self.weights, SeparateModel) and self.kind == "base"
        self.fingerprint = _fingerprint(self.weights.tensors) if is_copy else None

    def _make_weights(
        self,
        args: OPSDConfig,
        core: nn.Module,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        patch: Callable[[PreTrainedModel], None],
    ) -> SameWeights | AdapterTensors | SeparateModel:
        peft = hasattr(core, "peft_config")
        sharded = _is_sharded(accelerator)
        if self.kind == "live":
            return SameWeights()
        if self.kind == "base" and peft and _adapter_adds_nothing(core):
            return SameWeights(adapter=False)
        if sharded and self.kind != "checkpoint":
            raise ValueError(
                f"`teacher_model_kind={self.kind!r}` needs a copy of weights that are sharded by {sharded} here, which "
                "is not supported. Use `teacher_model_kind='live'`, train a new LoRA adapter (`peft_config`) with "
                "`'base'`, or name the start weights with `teacher_model_kind='checkpoint'`."
            )
        dtype = torch.float32 if self.kind == "ema" else None  # in bfloat16 a slow average would hardly move
        if self.kind != "checkpoint" and peft:
            return AdapterTensors(core, dtype)
        if self.kind == "checkpoint":
            model = _load_checkpoint_teacher(args, core, tokenizer)
        else:
            model = copy.deepcopy(core)
            del model.__dict__["forward"]  # TRL's patch is bound to the student's backbone
            model = model if dtype is None else model.to(dtype)
        patch(model)
        return SeparateModel(model, accelerator, args.cast_lm_head_to_fp32)

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
        self.head_of_pass = _detached(model_head(self.core.get_base_model())) if own else None

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


def _is_sharded(accelerator: Accelerator) -> str | None:
    """Name of the engine that shards the weights, if one does."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return "DeepSpeed ZeRO-3" if accelerator.state.deepspeed_plugin.zero_stage == 3 else None
    return "FSDP" if accelerator.distributed_type == DistributedType.FSDP else None


def _adapter_adds_nothing(core: nn.Module) -> bool:
    """Whether the adapter is a LoRA that starts at zero, so that the start is the model without it. PiSSA and the like
    change the base weights, and an adapter trained before is part of the start."""
    second = [param for name, param in core.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    others = [
        name
        for name, param in core.named_parameters()
        if param.requires_grad and "lora_" not in name and "modules_to_save" not in name
    ]
    # Sharded tensors are empty here and count as zero: an adapter made by `peft_config` under ZeRO-3 is new
    return bool(second) and not others and not any(bool(param.any()) for param in second)


def _detached(head: Head) -> Head:
    bias = None if head.bias is None else head.bias.detach()
    return Head(head.weight.detach(), bias, head.scale, head.softcap, head.float32)


def _fingerprint(tensors: dict[str, torch.Tensor]) -> float:
    return sum(float(tensor.sum(dtype=torch.float64)) for tensor in tensors.values())


def _load_checkpoint_teacher(args: OPSDConfig, core: nn.Module, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load `teacher_model_name_or_path` and compare its vocabulary with the student's."""
    path = args.teacher_model_name_or_path
    kwargs: dict[str, Any] = {"dtype": core.dtype, **(args.teacher_model_init_kwargs or {})}
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        kwargs["device_map"] = None  # as TRL does: "auto" fails there
    teacher = create_model_from_path(path, **kwargs)
    own = AutoTokenizer.from_pretrained(path, revision=kwargs.get("revision"))
    rows = min(teacher.get_output_embeddings().weight.shape[0], core.get_output_embeddings().weight.shape[0])
    if own.get_vocab() != tokenizer.get_vocab() or rows < len(tokenizer):
        raise ValueError(
            f"The teacher `teacher_model_name_or_path={path!r}` has another vocabulary ({len(own)} tokens) than the "
            f"student ({len(tokenizer)} tokens), so their distributions can't be compared token by token. Choose a "
            "teacher of the same family."
        )
    return teacher
