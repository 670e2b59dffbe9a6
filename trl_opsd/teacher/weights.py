# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Where the teacher's weights live: they are the student's own, the student's without its adapter, copies that take the
place of the student's for the teacher's forward, or a model of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import create_model_from_path, use_adapter

from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.engines import Tensors, Whole, shards_of
from trl_opsd.kernels import Head
from trl_opsd.model.head import model_head


class SameWeights:
    """
    The student's own weights, with its adapter or, for `adapter=False`, without it.

    Args:
        core (`nn.Module`): The student before any wrapping, with its PEFT wrapper if it has one.
        float32_head (`bool`): `cast_lm_head_to_fp32`.
        adapter (`bool`): Whether the adapter is on.
    """

    def __init__(self, core: nn.Module, float32_head: bool, adapter: bool = True):
        self.core, self.adapter, self.float32_head = core, adapter, float32_head
        # `modules_to_save=["lm_head"]`: asked here, as PEFT turns `requires_grad` off while an adapter is
        self._other_head = not adapter and any(
            param.requires_grad for param in core.get_base_model().get_output_embeddings().parameters()
        )
        self._head: Head | None = None

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model to call as the teacher, for just this block, given the wrapped student."""
        with nullcontext() if self.adapter else use_adapter(self.core, None):
            yield model
            if self._other_head:  # Not detached, as ZeRO-3 gathers parameters by identity
                self._head = model_head(self.core.get_base_model(), self.float32_head)

    def head(self) -> Head | None:
        """The teacher's head, `None` for the student's own. To be called inside the student's forward."""
        return self._head


class CopiedWeights:
    """
    Copies of what each rank holds of the trainable parameters, which take their place for the teacher's forward only.

    One forward path serves student and teacher under every engine, nothing is wrapped twice, and where the engine
    shards the student, it shards the teacher. A second adapter would be saved with the model, toggle `requires_grad`
    when it is switched to, and come back twice on resume (trl#6311).

    Args:
        core (`nn.Module`): The student before any wrapping, with its PEFT wrapper if it has one.
        shards ([`~trl_opsd.engines.shards.Whole`]): How the engine holds weights.
        dtype (`torch.dtype` or `None`): Type of the copies, `None` for the parameters' own.
        float32_head (`bool`): `cast_lm_head_to_fp32`.
    """

    def __init__(self, core: nn.Module, shards: Whole, dtype: torch.dtype | None, float32_head: bool):
        self.core, self.shards, self.dtype, self.float32_head = core, shards, dtype, float32_head
        self.names = [name for name, param in core.named_parameters() if param.requires_grad]
        self.params: dict[str, nn.Parameter] = {}
        self.parts: Tensors = {}
        self._head_names: list[str | None] = []

    @torch.no_grad()
    def attach(self) -> None:
        """Copy the parameters as they are now, unless these very parameters have been copied before."""
        self.shards.settle(self.core)
        params = dict(self.core.named_parameters())
        if self.params and all(params[name] is param for name, param in self.params.items()):
            return
        self.params = {name: params[name] for name in self.names}
        parts = {name: self.shards.part(param) for name, param in self.params.items()}
        self.parts = {name: part.clone().to(self.dtype or part.dtype) for name, part in parts.items()}
        # By identity, and now: in a forward FSDP2 has other tensors in their place
        names = {id(param): name for name, param in self.params.items()}
        embedding = self._base().get_output_embeddings()
        self._head_names = [names.get(id(tensor)) for tensor in (embedding.weight, embedding.bias)]

    def _base(self) -> nn.Module:
        return self.core.get_base_model() if hasattr(self.core, "peft_config") else self.core

    def square_sum(self) -> torch.Tensor:
        """Sum of the squares of this rank's entries, a 0-d float64 tensor."""
        squares = [
            torch.linalg.vector_norm(self.shards.countable(self.params[name], part), dtype=torch.float64) ** 2
            for name, part in self.parts.items()
        ]
        return torch.stack(squares).sum()

    @torch.no_grad()
    def update_state(self, rate: float) -> None:
        """Move every entry by `rate` of its way to the student's; 1 copies."""
        for name, part in self.parts.items():
            part.lerp_(self.shards.part(self.params[name]).to(part), rate)

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model to call as the teacher, for just this block, given the wrapped student."""
        if not self.parts:
            self.attach()
        # Autocast keeps its casts of a parameter while the outermost context lasts, whatever its place holds by now
        torch.clear_autocast_cache()
        with self.shards.lent(model, self.params, self.parts):
            yield model
        torch.clear_autocast_cache()

    def head(self) -> Head | None:
        """The teacher's head, `None` for the student's own. To be called inside the student's forward, by all ranks."""
        head = model_head(self._base(), self.float32_head)
        # In the type that the student's head has here: FSDP2's mixed precision gathers float32 weights in bfloat16
        weight, bias = (self._gathered(name, head.weight.dtype) for name in self._head_names)
        if weight is None and bias is None:
            return None
        return replace(head, weight=head.weight if weight is None else weight, bias=head.bias if bias is None else bias)

    def _gathered(self, name: str | None, dtype: torch.dtype) -> torch.Tensor | None:
        return None if name is None else self.shards.gather(self.params[name], self.parts[name], dtype)


class SeparateModel:
    """A model of its own, frozen, in evaluation mode, wrapped like TRL's reference model."""

    def __init__(self, model: PreTrainedModel, accelerator: Accelerator, float32_head: bool):
        self.core, self.float32_head = model.requires_grad_(False).eval(), float32_head
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.model = prepare_deepspeed(model, accelerator)
        elif accelerator.distributed_type == DistributedType.FSDP:
            self.model = prepare_fsdp(model, accelerator)
        else:
            self.model = accelerator.prepare_model(model, evaluation_mode=True)

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model to call as the teacher, for just this block, given the wrapped student."""
        yield self.model

    def head(self) -> Head | None:
        """The teacher's head. To be called inside the student's forward."""
        return model_head(self.core, self.float32_head)


def make_weights(
    args: OPSDConfig,
    core: nn.Module,
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerBase,
    patch: Callable[[PreTrainedModel], None],
) -> SameWeights | CopiedWeights | SeparateModel:
    """
    Where the weights of `args.teacher_model_kind` live for this student. The arguments are those of
    [`~trl_opsd.teacher.teacher.Teacher`].

    Raises:
        ValueError: If the kind does not exist for this model or engine.
    """
    kind, float32_head = args.teacher_model_kind, args.cast_lm_head_to_fp32
    if kind == "live":
        return SameWeights(core, float32_head)
    if kind == "base" and hasattr(core, "peft_config") and _adapter_adds_nothing(core):
        return SameWeights(core, float32_head, adapter=False)
    if kind == "checkpoint":
        model = _load_checkpoint_teacher(args, core, tokenizer)
        patch(model)
        return SeparateModel(model, accelerator, float32_head)
    shards = shards_of(accelerator)
    if shards is None:
        raise ValueError(
            f"`teacher_model_kind={kind!r}` needs a copy of the weights, and FSDP1 holds them flattened. "
            "Set `fsdp_version: 2` in the accelerate config, or use `teacher_model_kind='live'`, or a new LoRA adapter "
            "(`peft_config`) with `'base'`."
        )
    dtype = torch.float32 if kind == "ema" else None  # in bfloat16 a slow average would hardly move
    weights = CopiedWeights(core, shards, dtype, float32_head)
    # DeepSpeed and FSDP move, cast and shard the parameters when training begins, and only then load a checkpoint; else
    # a checkpoint is in them before
    if accelerator.distributed_type not in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        weights.attach()
    return weights


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
