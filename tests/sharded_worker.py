# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of tests/test_sharded.py: runs cases one after another and saves the gradients of their optimizer steps."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


os.environ["CUDA_VISIBLE_DEVICES"] = ""  # two ranks can't share one GPU

import accelerate.accelerator
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import TrainerCallback

import worker
from trl_opsd import OPSDTrainer


def sharded_layers(model: nn.Module, own_head: bool, **root: Any) -> nn.Module:
    """Each layer a unit, the head another one if it is to be, and one of all that is left."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    for unit in [*core.model.layers, *([core.lm_head] if own_head else [])]:
        fully_shard(unit)
    return fully_shard(model, **root)


# FSDP2 as accelerate does not lay it out but other code does
LAYOUTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "own head": lambda model: sharded_layers(model, own_head=True),
    "own head, root reshards": lambda model: sharded_layers(model, own_head=True, reshard_after_forward=True),
    "root reshards": lambda model: sharded_layers(model, own_head=False, reshard_after_forward=True),
}


@contextmanager
def layout(name: str) -> Iterator[None]:
    """Let accelerate's preparation of a model for FSDP2 be one of `LAYOUTS`, for a name among them."""
    original = accelerate.accelerator.fsdp2_prepare_model
    if name in LAYOUTS:
        accelerate.accelerator.fsdp2_prepare_model = lambda accelerator, model: LAYOUTS[name](model)
    try:
        yield
    finally:
        accelerate.accelerator.fsdp2_prepare_model = original


def engine_options(engine: str, variant: str) -> dict[str, Any]:
    """Training arguments that ask for an engine."""
    if engine == "fsdp2":
        config = {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "reshard_after_forward": variant != "keep",
            "cpu_ram_efficient_loading": variant == "keep",  # another way to fill the shards
        }
        return {"use_cpu": False, "fsdp": True, "fsdp_config": config}
    if engine.startswith("zero"):
        # With the default threshold, tensors as small as these are left whole on every rank
        zero = {"stage": int(engine[-1]), "stage3_param_persistence_threshold": 0}
        auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        config = {"zero_optimization": zero, "zero_allow_untested_optimizer": True, **dict.fromkeys(auto, "auto")}
        return {"use_cpu": False, "deepspeed": config}
    return {}


def allow_sharding_on_cpu() -> None:
    """Accelerate turns FSDP and DeepSpeed on for accelerators alone; all that follows from it runs on CPUs too.

    Under its own DeepSpeed config with `use_cpu`, every rank counts one process and trains on the same rows.
    """
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


class Gradients(TrainerCallback):
    """Keeps the whole gradient of every parameter at each optimizer step."""

    def __init__(self, trainer: OPSDTrainer, engine: str):
        self.trainer, self.engine = trainer, engine
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.engine.startswith("zero"):  # accelerate steps DeepSpeed's engine within its backward
            step = self.trainer.model_wrapped.step
            self.trainer.model_wrapped.step = lambda *args, **kwargs: (self.keep(), step(*args, **kwargs))

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if not self.engine.startswith("zero"):
            self.keep()

    def keep(self) -> None:
        core = self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)
        # `requires_grad` says nothing here: PEFT sets it on the tensors that FSDP2 has in place at the moment, whole or
        # sharded, when the adapter is switched off and on for the teacher
        grads = {name: self.whole(param) for name, param in core.named_parameters()}
        self.steps.append({name: grad.detach().clone() for name, grad in grads.items() if grad is not None})

    def whole(self, param: nn.Parameter) -> torch.Tensor | None:
        if self.engine.startswith("zero"):
            from deepspeed.utils import safe_get_full_grad

            if self.engine == "zero3" and (param.ds_persist or param.ds_tensor.numel() == param.ds_numel):
                raise AssertionError("ZeRO-3 left a parameter whole")
            return safe_get_full_grad(param)
        if self.engine == "fsdp2" and param.grad is not None:
            if not isinstance(self.trainer.model_wrapped, FSDPModule) or param.grad.to_local().numel() == param.numel():
                raise AssertionError("FSDP2 left a parameter whole")
            return param.grad.full_tensor()
        if self.engine == "none" and param.requires_grad and param.grad is None:
            raise AssertionError("the reference trains less than it says")
        return param.grad


def gradients(folder: str, engine: str, variant: str, options: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """Train under an engine and give each step's gradients by parameter."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with layout(variant):
        trainer = worker.build(folder, {**options, **engine_options(engine, variant)})
        kept = Gradients(trainer, engine)
        trainer.add_callback(kept)
        trainer.train()
    return kept.steps


def main(folder: str, runs: list[dict]) -> None:
    torch.set_num_threads(1)
    engines = {run["engine"] for run in runs}
    if engines & {"fsdp2", "zero2", "zero3"}:
        allow_sharding_on_cpu()
    if engines & {"zero2", "zero3"}:
        import deepspeed

        # DeepSpeed would compile an operator for gloo's all-reduce in shared memory, which takes minutes
        deepspeed.ops.__compatible_ops__ = {}
    for number, run in enumerate(runs):
        print(f"\n{run}", flush=True)
        try:
            result = gradients(folder, run["engine"], run["variant"], run["options"])
        except Exception:  # the other cases have their own say
            result = traceback.format_exc()
        torch.save(result, Path(folder) / f"{number}-{os.environ.get('RANK', 0)}.pt")
    if torch.distributed.is_initialized():  # else gloo's threads may abort the exit
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
