# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Where the teacher's weights live: the student's own, the student's without its adapter, a copy of the adapter's tensors,
or a model of its own.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import create_model_from_path, use_adapter

from trl_opsd.config import OPSDConfig
from trl_opsd.forward import model_head
from trl_opsd.kernels import Head


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


def make_weights(
    args: OPSDConfig,
    core: nn.Module,
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerBase,
    patch: Callable[[PreTrainedModel], None],
) -> SameWeights | AdapterTensors | SeparateModel:
    """
    Where the weights of `args.teacher_model_kind` live for this student. The arguments are those of
    [`~trl_opsd.teacher.Teacher`].

    Raises:
        ValueError: If the kind does not exist for this model or engine.
    """
    kind, peft = args.teacher_model_kind, hasattr(core, "peft_config")
    sharded = _is_sharded(accelerator)
    if kind == "live":
        return SameWeights()
    if kind == "base" and peft and _adapter_adds_nothing(core):
        return SameWeights(adapter=False)
    if sharded and kind != "checkpoint":
        raise ValueError(
            f"`teacher_model_kind={kind!r}` needs a copy of weights that are sharded by {sharded} here, which "
            "is not supported. Use `teacher_model_kind='live'`, train a new LoRA adapter (`peft_config`) with "
            "`'base'`, or name the start weights with `teacher_model_kind='checkpoint'`."
        )
    dtype = torch.float32 if kind == "ema" else None  # in bfloat16 a slow average would hardly move
    if kind != "checkpoint" and peft:
        return AdapterTensors(core, dtype)
    if kind == "checkpoint":
        model = _load_checkpoint_teacher(args, core, tokenizer)
    else:
        model = copy.deepcopy(core)
        del model.__dict__["forward"]  # TRL's patch is bound to the student's backbone
        model = model if dtype is None else model.to(dtype)
    patch(model)
    return SeparateModel(model, accelerator, args.cast_lm_head_to_fp32)


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


def _load_checkpoint_teacher(args: OPSDConfig, core: nn.Module, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load `teacher_model_name_or_path` and compare its vocabulary with the student's."""
    path = args.teacher_model_name_or_path
    kwargs: dict[str, Any] = {"dtype": core.dtype, **(args.teacher_model_init_kwargs or {})}
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        kwargs["device_map"] = None  # as TRL does: "auto" fails there
    teacher = create_model_from_path(path, **kwargs)
    own = AutoTokenizer.from_pretrained(path, revision=kwargs.get("revision"))
    heads = (model.get_output_embeddings().weight for model in (teacher, core))
    rows = min(getattr(weight, "ds_shape", weight.shape)[0] for weight in heads)  # ZeRO-3 leaves empty tensors behind
    if own.get_vocab() != tokenizer.get_vocab() or rows < len(tokenizer):
        raise ValueError(
            f"The teacher `teacher_model_name_or_path={path!r}` has another vocabulary ({len(own)} tokens) than the "
            f"student ({len(tokenizer)} tokens), so their distributions can't be compared token by token. Choose a "
            "teacher of the same family."
        )
    return teacher
