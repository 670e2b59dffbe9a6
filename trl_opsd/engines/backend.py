# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Distributed backend of a run: the one place that asks accelerate which engine holds the model.

The rest of the package asks [`Backend`] for a property of the engine, such as whether it gathers whole modules, and
never which engine it is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator, DistributedType, PartialState
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.models import prepare_deepspeed, prepare_fsdp

from trl_opsd.engines.shards import FSDP2Shards, ParameterShards, Unsharded, ZeRO3Shards


@dataclass(frozen=True)
class Backend:
    """
    Distributed backend of an accelerator: how it prepares, shards and checkpoints a model.

    Args:
        accelerator (`Accelerator`): The trainer's.
    """

    accelerator: Accelerator

    @property
    def is_deepspeed(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    @property
    def is_fsdp(self) -> bool:
        """FSDP of either version."""
        return self.accelerator.distributed_type == DistributedType.FSDP

    @property
    def is_ddp(self) -> bool:
        """DistributedDataParallel, on any device."""
        return self.accelerator.distributed_type.startswith("MULTI_")

    @property
    def zero_stage(self) -> int:
        """ZeRO stage of DeepSpeed, 0 without it."""
        return self.accelerator.state.deepspeed_plugin.zero_stage if self.is_deepspeed else 0

    @property
    def prepares_model_in_train(self) -> bool:
        """Whether the engine moves, casts and shards the parameters when training begins, and not before."""
        return self.is_deepspeed or self.is_fsdp

    @property
    def gathers_whole_modules(self) -> bool:
        """Whether a module's forward is a collective, so that either all ranks call the module or none does."""
        return self.is_fsdp or self.zero_stage == 3

    @property
    def shards(self) -> ParameterShards | None:
        """Sharding of the parameters; `None` for FSDP1, which flattens several parameters into one."""
        if self.zero_stage == 3:
            return ZeRO3Shards(self.accelerator)
        if self.is_fsdp:
            return FSDP2Shards() if self.accelerator.is_fsdp2 else None
        return Unsharded()

    def prepare_frozen(self, model: PreTrainedModel) -> nn.Module:
        """Wrap a model that is not trained, as TRL wraps its reference model."""
        if self.is_deepspeed:
            return prepare_deepspeed(model, self.accelerator)
        if self.is_fsdp:
            return prepare_fsdp(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def required_processes(self, checkpoint: Path) -> int | None:
        """
        Number of processes that `checkpoint` can be resumed with: under DeepSpeed the number that wrote it.

        Returns:
            The number, or `None` if any will do: under other backends, and for a checkpoint without DeepSpeed's files
            or one that is loaded as a universal checkpoint.
        """
        if not self.is_deepspeed:
            return None
        config = self.accelerator.state.deepspeed_plugin.deepspeed_config
        if config.get("checkpoint", {}).get("load_universal"):
            return None
        return len(list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt"))) or None


def loading_kwargs() -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` that the launch requires: TRL's default `device_map="auto"` fails with
    several GPU processes and under DeepSpeed."""
    # The launch's type and not the accelerator's, which under FSDP is another one
    launched = PartialState().distributed_type
    return {"device_map": None} if launched in (DistributedType.MULTI_GPU, DistributedType.DEEPSPEED) else {}


def shards_loaded_models() -> bool:
    """Whether `from_pretrained` shards every model that is loaded from now on, as it does under DeepSpeed ZeRO-3."""
    return is_deepspeed_zero3_enabled()
