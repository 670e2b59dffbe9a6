# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Storage of a teacher's weights: the student's own weights with or without its adapter, copies that are swapped in for
the teacher's forward, or a separate model.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel
from trl.trainer.utils import use_adapter

from trl_opsd.engines import Backend, ParameterShards, Tensors, Unsharded
from trl_opsd.engines.shards import in_host_memory, on_device
from trl_opsd.kernels import Head
from trl_opsd.model.head import model_head


class TeacherWeights:
    """
    Weights of a teacher.

    Args:
        core (`nn.Module`): The unwrapped model that holds them: the student with its PEFT wrapper, or a separate model.
        float32_head (`bool`): `cast_lm_head_to_fp32`.
    """

    sharded_by = Unsharded.name

    def __init__(self, core: nn.Module, float32_head: bool):
        self.core, self.float32_head = core, float32_head

    @property
    def reader(self) -> nn.Module:
        """Unwrapped model that reads, with its PEFT wrapper where its adapter is on."""
        return self.core

    def attach(self) -> None:
        """Copy the start weights, where a copy is needed and has not been made."""

    def active(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """
        Put the weights in place within this block, and give the model to call as the teacher.

        Args:
            model (`nn.Module`): The wrapped student.
        """
        raise NotImplementedError

    def head(self) -> Head | None:
        """The teacher's head, `None` for the student's own. To be called inside the student's forward, by all ranks."""
        raise NotImplementedError


class StudentWeights(TeacherWeights):
    """
    The student's own weights, with its adapter or, for `adapter=False`, without it.

    Args:
        core (`nn.Module`): The student before any wrapping, with its PEFT wrapper if it has one.
        float32_head (`bool`): `cast_lm_head_to_fp32`.
        adapter (`bool`): Whether the adapter is on.
    """

    def __init__(self, core: nn.Module, float32_head: bool, adapter: bool = True):
        super().__init__(core, float32_head)
        self.adapter = adapter
        # `modules_to_save=["lm_head"]`: asked here, as PEFT turns `requires_grad` off while an adapter is
        self._has_own_head = not adapter and any(
            param.requires_grad for param in core.get_base_model().get_output_embeddings().parameters()
        )
        self._head: Head | None = None

    @property
    def reader(self) -> nn.Module:
        return self.core if self.adapter else self.core.get_base_model()

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[nn.Module]:
        with nullcontext() if self.adapter else use_adapter(self.core, None):
            yield model
            if self._has_own_head:  # Not detached, as ZeRO-3 gathers parameters by identity
                self._head = model_head(self.core.get_base_model(), self.float32_head)

    def head(self) -> Head | None:
        return self._head


class CopiedWeights(TeacherWeights):
    """
    Copies of each rank's shards of the trainable parameters, swapped in for the teacher's forward only.

    One forward path serves student and teacher under every engine, nothing is wrapped twice, and where the engine
    shards the student, it shards the teacher. A second adapter would be saved with the model, toggle `requires_grad`
    when it is switched to, and come back twice on resume (trl#6311).

    Args:
        core (`nn.Module`): The student before any wrapping, with its PEFT wrapper if it has one.
        shards ([`~trl_opsd.engines.shards.ParameterShards`]): Sharding of the student's parameters.
        dtype (`torch.dtype` or `None`): Type of the copies, `None` for the parameters' own.
        float32_head (`bool`): `cast_lm_head_to_fp32`.
        offload (`bool`): Whether the copies are in host memory while the teacher does not read.
    """

    def __init__(
        self,
        core: nn.Module,
        shards: ParameterShards,
        dtype: torch.dtype | None,
        float32_head: bool,
        offload: bool = False,
    ):
        super().__init__(core, float32_head)
        self.shards, self.dtype, self.sharded_by, self.offload = shards, dtype, shards.name, offload
        self.names = [name for name, param in core.named_parameters() if param.requires_grad]
        self.params: dict[str, nn.Parameter] = {}
        self.copies: Tensors = {}
        self._head_names: list[str | None] = []

    @torch.no_grad()
    def attach(self) -> None:
        """Copy the parameters as they are now, unless these very parameters have been copied before."""
        self.shards.reshard(self.core)
        params = dict(self.core.named_parameters())
        if self.params and all(params[name] is param for name, param in self.params.items()):
            return
        self.params = {name: params[name] for name in self.names}
        shards = {name: self.shards.local_shard(param) for name, param in self.params.items()}
        self.copies = {name: self._copy(shard, self.dtype or shard.dtype) for name, shard in shards.items()}
        # By identity, and now: in a forward FSDP2 has other tensors in their place
        names = {id(param): name for name, param in self.params.items()}
        embedding = self._causal_lm().get_output_embeddings()
        self._head_names = [names.get(id(tensor)) for tensor in (embedding.weight, embedding.bias)]

    def _copy(self, shard: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return in_host_memory(shard.to(dtype)) if self.offload else shard.clone().to(dtype)

    def _causal_lm(self) -> nn.Module:
        return self.core.get_base_model() if hasattr(self.core, "peft_config") else self.core

    def square_sum(self) -> torch.Tensor:
        """Sum of the squares of this rank's entries, a 0-d float64 tensor."""
        squares = [
            torch.linalg.vector_norm(self.shards.without_padding(self.params[name], copy), dtype=torch.float64) ** 2
            for name, copy in self.copies.items()
        ]
        return torch.stack(squares).sum()

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """Interpolate: copies = (1 - rate) * copies + rate * student. A rate of 1 copies the student."""
        for name, copy in self.copies.items():
            student = self.shards.local_shard(self.params[name])
            there = on_device(copy, student.device)  # where it is computed with or without an offload
            there.lerp_(student.to(there.dtype), rate)
            if there is not copy:
                copy.copy_(there)

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[nn.Module]:
        if not self.copies:
            self.attach()
        # Autocast keeps its casts of a parameter while the outermost context lasts, whatever is swapped in by now
        torch.clear_autocast_cache()
        with self.shards.swapped_in(model, self.params, self.copies):
            yield model
        torch.clear_autocast_cache()

    def head(self) -> Head | None:
        head = model_head(self._causal_lm(), self.float32_head)
        # In the type that the student's head has here: FSDP2's mixed precision gathers float32 weights in bfloat16
        weight, bias = (self._gathered(name, head.weight.dtype) for name in self._head_names)
        if weight is None and bias is None:
            return None
        return replace(head, weight=head.weight if weight is None else weight, bias=head.bias if bias is None else bias)

    def _gathered(self, name: str | None, dtype: torch.dtype) -> torch.Tensor | None:
        return None if name is None else self.shards.gather(self.params[name], self.copies[name], dtype)


class SeparateModel(TeacherWeights):
    """
    A frozen model in evaluation mode, wrapped like TRL's reference model.

    Args:
        model (`PreTrainedModel`): The unwrapped model.
        backend ([`~trl_opsd.engines.backend.Backend`]): Wraps it.
        float32_head (`bool`): `cast_lm_head_to_fp32`.
        offload (`bool`): Whether its parameters are in host memory while it does not read.
    """

    def __init__(self, model: PreTrainedModel, backend: Backend, float32_head: bool, offload: bool = False):
        super().__init__(model.requires_grad_(False).eval(), float32_head)
        self.model = backend.prepare_frozen(model)
        # By identity, as a tied parameter has two names
        self._devices = {param: param.device for param in self.core.parameters()} if offload else {}
        for param in self._devices:
            param.data = in_host_memory(param.data)

    @contextmanager
    def active(self, model: nn.Module) -> Iterator[nn.Module]:
        host = {param: param.data for param in self._devices}
        for param, device in self._devices.items():
            param.data = on_device(param.data, device)
        try:
            yield self.model
        finally:
            for param, data in host.items():
                param.data = data

    def head(self) -> Head | None:
        head = model_head(self.core, self.float32_head)
        device = self._devices.get(head.weight)
        if device is None:
            return head
        bias = None if head.bias is None else on_device(head.bias, device)
        return replace(head, weight=on_device(head.weight, device), bias=bias)
