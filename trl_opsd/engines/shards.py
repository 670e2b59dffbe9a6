# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Per-backend access to local parameter shards: read, swap in temporarily, all-gather, checkpoint.

A teacher that is a copy of the student's weights copies local shards, so no rank holds more of the teacher than of the
student.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


Tensors = dict[str, torch.Tensor]


class ParameterShards:
    """
    Sharding of parameters over ranks by one backend.

    Attributes:
        name (`str`): The backend, as checkpoints and errors name it.
        is_sharded (`bool`): Whether ranks hold different entries of a parameter.
    """

    name: ClassVar[str]
    is_sharded: ClassVar[bool] = True

    def reshard(self, model: nn.Module) -> None:
        """Reshard the parameters of `model` that a forward left gathered, so that [`local_shard`] can read them."""

    def local_shard(self, param: nn.Parameter) -> torch.Tensor:
        """This rank's shard of `param`, sharing its memory."""
        raise NotImplementedError

    def without_padding(self, param: nn.Parameter, shard: torch.Tensor) -> torch.Tensor:
        """The entries of a shard that are weights and not padding."""
        return shard

    def gather(self, param: nn.Parameter, shard: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """All-gather the whole tensor from one shard per rank, sent and returned in `dtype`. All ranks must call it."""
        raise NotImplementedError

    def swapped_in(self, model: nn.Module, params: dict[str, nn.Parameter], shards: Tensors) -> AbstractContextManager:
        """
        Swap `shards` in for the weights of `model` within this block, so that its forward reads them.

        Args:
            model (`nn.Module`): The wrapped model.
            params (`dict[str, nn.Parameter]`): Parameters of the model.
            shards (`dict[str, torch.Tensor]`): For each of `params`, a tensor of the shape of its [`local_shard`].
        """
        raise NotImplementedError

    def save(self, folder: Path, params: dict[str, nn.Parameter], shards: Tensors, should_save: bool) -> None:
        """Write `shards` into the checkpoint `folder`. All ranks call it; where each holds everything, only a rank with
        `should_save` writes."""
        raise NotImplementedError

    def load(self, folder: Path, params: dict[str, nn.Parameter], shards: Tensors) -> None:
        """
        Fill `shards` with the values written by [`save`]. FSDP2's are read by torch, which unpickles their `.metadata`:
        a checkpoint of a stranger can run code there.

        Raises:
            FileNotFoundError: If the file of this rank is missing.
            ValueError: If other parameters or shapes were saved.
        """
        raise NotImplementedError


class Unsharded(ParameterShards):
    """Replicated parameters: one process, DDP, ZeRO-1, ZeRO-2. Shards may be in host memory."""

    name = "no engine that shards weights"
    is_sharded = False

    def local_shard(self, param: nn.Parameter) -> torch.Tensor:
        return param.data

    def gather(self, param: nn.Parameter, shard: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return on_device(shard, param.device).to(dtype)

    @contextmanager
    def swapped_in(self, model: nn.Module, params: dict[str, nn.Parameter], shards: Tensors) -> Iterator[None]:
        own = {name: param.data for name, param in params.items()}
        for name, param in params.items():
            param.data = on_device(shards[name], param.device).to(param.dtype)
        try:
            yield
        finally:
            for name, param in params.items():
                param.data = own[name]

    def save(self, folder: Path, params: dict[str, nn.Parameter], shards: Tensors, should_save: bool) -> None:
        if should_save:
            _save_file(folder / "teacher.safetensors", shards)

    def load(self, folder: Path, params: dict[str, nn.Parameter], shards: Tensors) -> None:
        _load_file(folder / "teacher.safetensors", shards)


class ZeRO3Shards(ParameterShards):
    """DeepSpeed ZeRO-3: each rank holds an equal slice of the flattened parameter, the last ones padded."""

    name = "DeepSpeed ZeRO-3"

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def local_shard(self, param: nn.Parameter) -> torch.Tensor:
        location = param.ds_tensor.final_location
        if location is not None or param.ds_secondary_tensor is not None:
            raise ValueError(
                "A teacher that is a copy of the weights can't follow parameters that ZeRO-3 keeps on NVMe "
                "(`offload_param`) or twice (`zero_hpz_partition_size`). Leave that out of the DeepSpeed config, or "
                "use `teacher_model_kind='live'`, or 'base' with a new LoRA adapter."
            )
        return param.ds_tensor.data

    def without_padding(self, param: nn.Parameter, shard: torch.Tensor) -> torch.Tensor:
        start = torch.distributed.get_rank(param.ds_process_group) * shard.numel()
        return shard[: max(0, param.ds_numel - start)]

    def gather(self, param: nn.Parameter, shard: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        group = param.ds_process_group
        shard = shard.to(param.device, dtype)
        full = shard.new_empty(shard.numel() * torch.distributed.get_world_size(group))
        torch.distributed.all_gather_into_tensor(full, shard.contiguous(), group=group)
        return full[: param.ds_numel].view(param.ds_shape)

    @contextmanager
    def swapped_in(self, model: nn.Module, params: dict[str, nn.Parameter], shards: Tensors) -> Iterator[None]:
        self._release_gathered()
        own = {name: param.ds_tensor.data for name, param in params.items()}
        for name, param in params.items():
            param.ds_tensor.data = shards[name].to(param.ds_tensor)
        try:
            yield
            self._release_gathered()
        finally:
            for name, param in params.items():
                param.ds_tensor.data = own[name]

    def _release_gathered(self) -> None:
        # DeepSpeed leaves small parameters gathered, and may have begun to fetch others
        self.accelerator.deepspeed_engine_wrapped.engine.optimizer.empty_partition_cache()

    def save(self, folder: Path, params: dict[str, nn.Parameter], shards: Tensors, should_save: bool) -> None:
        _save_file(self._file(folder), shards)

    def load(self, folder: Path, params: dict[str, nn.Parameter], shards: Tensors) -> None:
        _load_file(self._file(folder), shards)

    def _file(self, folder: Path) -> Path:
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return folder / f"teacher-{rank + 1:05d}-of-{ranks:05d}.safetensors"


class FSDP2Shards(ParameterShards):
    """PyTorch's FSDP2: each rank holds rows of the parameter, in a `DTensor`."""

    name = "FSDP2"

    def reshard(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def local_shard(self, param: nn.Parameter) -> torch.Tensor:
        return param.detach().to_local()

    def gather(self, param: nn.Parameter, shard: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self._dtensor(param, shard.to(param.device_mesh.device_type, dtype)).full_tensor()

    @contextmanager
    def swapped_in(self, model: nn.Module, params: dict[str, nn.Parameter], shards: Tensors) -> Iterator[None]:
        # Values are copied, as the tensors that FSDP2 gathers from are no public attribute
        self.reshard(model)
        own = {name: self.local_shard(param).clone() for name, param in params.items()}
        self._fill(params, shards)
        try:
            yield
            self.reshard(model)
        finally:
            self._fill(params, own)

    def _fill(self, params: dict[str, nn.Parameter], shards: Tensors) -> None:
        for name, param in params.items():
            self.local_shard(param).copy_(shards[name])

    def save(self, folder: Path, params: dict[str, nn.Parameter], shards: Tensors, should_save: bool) -> None:
        dcp.save(self._dtensors(params, shards), checkpoint_id=folder / "teacher")

    def load(self, folder: Path, params: dict[str, nn.Parameter], shards: Tensors) -> None:
        reader = dcp.FileSystemReader(folder / "teacher")  # it reads `.metadata` with pickle: of trusted checkpoints
        saved = {name: tuple(entry.size) for name, entry in reader.read_metadata().state_dict_metadata.items()}
        dtensors = self._dtensors(params, shards)
        _check_shapes(saved, dtensors)
        dcp.load(dtensors, storage_reader=reader)  # into the memory of `shards`

    def _dtensors(self, params: dict[str, nn.Parameter], shards: Tensors) -> dict[str, DTensor]:
        return {name: self._dtensor(params[name], shard) for name, shard in shards.items()}

    def _dtensor(self, param: nn.Parameter, shard: torch.Tensor) -> DTensor:
        mesh, placements = param.device_mesh, param.placements
        return DTensor.from_local(shard, mesh, placements, shape=param.shape, stride=param.stride())


def in_host_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Copy of a tensor in host memory, pinned where an accelerator reads it."""
    copy = tensor.to("cpu", copy=True)
    return copy if tensor.device.type == "cpu" else copy.pin_memory()


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device, itself where it is there already. The device waits for a copy, and the host does not."""
    return tensor.to(device, non_blocking=True)


def _save_file(path: Path, shards: Tensors) -> None:
    save_file({name: shard.contiguous() for name, shard in shards.items()}, path)


def _load_file(path: Path, shards: Tensors) -> None:
    saved = load_file(path)
    _check_shapes({name: tuple(shard.shape) for name, shard in saved.items()}, shards)
    for name, shard in shards.items():
        shard.copy_(saved[name])


def _check_shapes(saved: dict[str, tuple[int, ...]], expected: Tensors) -> None:
    if saved.keys() != expected.keys():
        name = min(saved.keys() ^ expected.keys())
        where = "but not in this model" if name in saved else "of this model is missing"
        raise ValueError(f"its parameters are not those that this run trains: {name!r} is there {where}")
    for name, tensor in expected.items():
        if saved[name] != tuple(tensor.shape):
            raise ValueError(f"{name!r} has the shape {saved[name]} there and {tuple(tensor.shape)} in this run")
