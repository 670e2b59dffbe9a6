# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
What a rank holds of a parameter, engine by engine: how to read it, to lend its place to another tensor, to gather the
whole, and to write copies of it to a checkpoint.

The teacher's weights are copies of these parts. No rank holds more of the teacher than of the student.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


Tensors = dict[str, torch.Tensor]


class Whole:
    """Every rank holds the whole parameter: one process, DDP, ZeRO-1, ZeRO-2."""

    name = "no engine that shards weights"

    def settle(self, model: nn.Module) -> None:
        """Bring the student's parameters into the state in which [`part`] can read them."""

    def part(self, param: nn.Parameter) -> torch.Tensor:
        """What this rank holds of `param`, sharing its memory."""
        return param.data

    def countable(self, param: nn.Parameter, part: torch.Tensor) -> torch.Tensor:
        """The entries of a part that are weights and on no other rank, not padding."""
        return part

    def gather(self, param: nn.Parameter, part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The whole tensor that `part` is a part of, sent and returned in `dtype`. All ranks must call it."""
        return part.to(dtype)

    @contextmanager
    def lent(self, model: nn.Module, params: dict[str, nn.Parameter], parts: Tensors) -> Iterator[None]:
        """
        Let a forward of `model` read `parts` in place of the student's own weights, for just this block.

        Args:
            model (`nn.Module`): The wrapped model.
            params (`dict[str, nn.Parameter]`): Parameters of the student.
            parts (`dict[str, torch.Tensor]`): Of the shapes that [`part`] gives.
        """
        own = {name: param.data for name, param in params.items()}
        for name, param in params.items():
            param.data = parts[name].to(param.dtype)
        try:
            yield
        finally:
            for name, param in params.items():
                param.data = own[name]

    def save(self, folder: Path, params: dict[str, nn.Parameter], parts: Tensors, writes: bool) -> None:
        """Write `parts` into the checkpoint `folder`; all ranks call it, those that hold it all only if it `writes`."""
        if writes:
            save_file({name: part.contiguous() for name, part in parts.items()}, self._file(folder))

    def load(self, folder: Path, params: dict[str, nn.Parameter], parts: Tensors) -> None:
        """
        Fill `parts` with what [`save`] wrote.

        Raises:
            FileNotFoundError: If this rank's part is not there.
            ValueError: If other parameters or shapes were saved.
        """
        saved = load_file(self._file(folder))
        _check_shapes({name: tuple(part.shape) for name, part in saved.items()}, parts)
        for name, part in parts.items():
            part.copy_(saved[name])

    def _file(self, folder: Path) -> Path:
        return folder / "teacher.safetensors"


class ZeRO3(Whole):
    """DeepSpeed ZeRO-3: each rank holds an equal slice of the flattened parameter, the last ones padded."""

    name = "DeepSpeed ZeRO-3"

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def _release(self) -> None:
        # DeepSpeed leaves small parameters gathered, and may have begun to fetch others
        self.accelerator.deepspeed_engine_wrapped.engine.optimizer.empty_partition_cache()

    def part(self, param: nn.Parameter) -> torch.Tensor:
        location = param.ds_tensor.final_location
        if location is not None or param.ds_secondary_tensor is not None:
            raise ValueError(
                "A teacher that is a copy of the weights can't follow parameters that ZeRO-3 keeps on NVMe "
                "(`offload_param`) or twice (`zero_hpz_partition_size`). Leave that out of the DeepSpeed config, or "
                "use `teacher_model_kind='live'`, or 'base' with a new LoRA adapter."
            )
        return param.ds_tensor.data

    def countable(self, param: nn.Parameter, part: torch.Tensor) -> torch.Tensor:
        start = torch.distributed.get_rank(param.ds_process_group) * part.numel()
        return part[: max(0, param.ds_numel - start)]

    def gather(self, param: nn.Parameter, part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        group = param.ds_process_group
        part = part.to(param.device, dtype)
        whole = part.new_empty(part.numel() * torch.distributed.get_world_size(group))
        torch.distributed.all_gather_into_tensor(whole, part.contiguous(), group=group)
        return whole[: param.ds_numel].view(param.ds_shape)

    @contextmanager
    def lent(self, model: nn.Module, params: dict[str, nn.Parameter], parts: Tensors) -> Iterator[None]:
        self._release()
        own = {name: param.ds_tensor.data for name, param in params.items()}
        for name, param in params.items():
            param.ds_tensor.data = parts[name].to(param.ds_tensor)
        try:
            yield
            self._release()
        finally:
            for name, param in params.items():
                param.ds_tensor.data = own[name]

    def save(self, folder: Path, params: dict[str, nn.Parameter], parts: Tensors, writes: bool) -> None:
        super().save(folder, params, parts, writes=True)

    def _file(self, folder: Path) -> Path:
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return folder / f"teacher-{rank + 1:05d}-of-{ranks:05d}.safetensors"


class FSDP2(Whole):
    """PyTorch's FSDP2: each rank holds rows of the parameter, in a `DTensor`."""

    name = "FSDP2"

    def settle(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def part(self, param: nn.Parameter) -> torch.Tensor:
        return param.detach().to_local()

    def gather(self, param: nn.Parameter, part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self._whole(param, part.to(param.device_mesh.device_type, dtype)).full_tensor()

    @contextmanager
    def lent(self, model: nn.Module, params: dict[str, nn.Parameter], parts: Tensors) -> Iterator[None]:
        # Copied and not swapped: what FSDP2 gathers from is no public attribute
        self.settle(model)
        own = {name: self.part(param).clone() for name, param in params.items()}
        self._fill(params, parts)
        try:
            yield
            self.settle(model)
        finally:
            self._fill(params, own)

    def _fill(self, params: dict[str, nn.Parameter], parts: Tensors) -> None:
        for name, param in params.items():
            self.part(param).copy_(parts[name])

    def save(self, folder: Path, params: dict[str, nn.Parameter], parts: Tensors, writes: bool) -> None:
        wholes = {name: self._whole(params[name], part) for name, part in parts.items()}
        dcp.save(wholes, checkpoint_id=folder / "teacher")

    def load(self, folder: Path, params: dict[str, nn.Parameter], parts: Tensors) -> None:
        reader = dcp.FileSystemReader(folder / "teacher")
        saved = {name: tuple(entry.size) for name, entry in reader.read_metadata().state_dict_metadata.items()}
        wholes = {name: self._whole(params[name], part) for name, part in parts.items()}
        _check_shapes(saved, wholes)
        dcp.load(wholes, storage_reader=reader)  # into the memory of `parts`

    def _whole(self, param: nn.Parameter, part: torch.Tensor) -> DTensor:
        mesh, placements = param.device_mesh, param.placements
        return DTensor.from_local(part, mesh, placements, shape=param.shape, stride=param.stride())


def shards_of(accelerator: Accelerator) -> Whole | None:
    """How the engine of this run holds weights; `None` for FSDP1, whose parameters have no tensors of their own."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return ZeRO3(accelerator) if accelerator.state.deepspeed_plugin.zero_stage == 3 else Whole()
    if accelerator.distributed_type == DistributedType.FSDP:
        return FSDP2() if accelerator.is_fsdp2 else None
    return Whole()


def _check_shapes(saved: dict[str, tuple[int, ...]], parts: Tensors) -> None:
    if saved.keys() != parts.keys():
        name = min(saved.keys() ^ parts.keys())
        where = "but not in this model" if name in saved else "of this model is missing"
        raise ValueError(f"its parameters are not those that this run trains: {name!r} is there {where}")
    for name, part in parts.items():
        if saved[name] != tuple(part.shape):
            raise ValueError(f"{name!r} has the shape {saved[name]} there and {tuple(part.shape)} in this run")
