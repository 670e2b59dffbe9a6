# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of test_sharded.py: runs cases one after another and saves what came out of each."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


from on_cpu import allow_engines_on_cpu, use_deepspeeds_slow_operators  # isort: skip, it hides the GPUs

import accelerate.accelerator
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import TrainerCallback

import worker
from trl_opsd import OPSDTrainer
from trl_opsd.teacher.weights import CopiedWeights


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


def engine_options(engine: str, variant: str, bfloat16: bool) -> dict[str, Any]:
    """Training arguments that ask for an engine, and for weights in bfloat16."""
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
        threshold = 100 if variant == "small ones whole" else 0
        zero = {"stage": int(engine[-1]), "stage3_param_persistence_threshold": threshold}
        auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        config = {"zero_optimization": zero, "zero_allow_untested_optimizer": True, **dict.fromkeys(auto, "auto")}
        if bfloat16:  # DeepSpeed keeps weights of that type only if told so
            config["bf16"] = {"enabled": True}
        return {"use_cpu": False, "deepspeed": config, "bf16": bfloat16}
    return {}


class Observer(TrainerCallback):
    """Keeps the whole gradient of every parameter at each optimizer step and, if asked to, the weights after it."""

    def __init__(self, trainer: OPSDTrainer, engine: str, variant: str, keeps_weights: bool):
        self.trainer, self.engine, self.variant, self.keeps_weights = trainer, engine, variant, keeps_weights
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    @property
    def core(self) -> nn.Module:
        return self.trainer.accelerator.unwrap_model(self.trainer.model_wrapped)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.engine.startswith("zero"):  # accelerate steps DeepSpeed's engine within its backward
            step = self.trainer.model_wrapped.step
            self.trainer.model_wrapped.step = lambda *args, **kwargs: (self.keep(), step(*args, **kwargs))
        self.keep_weights()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if not self.engine.startswith("zero"):
            self.keep()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.keep_weights()

    def keep(self) -> None:
        # `requires_grad` says nothing here: PEFT sets it on the tensors that FSDP2 has in place at the moment, whole or
        # sharded, when the adapter is switched off and on for the teacher
        grads = {name: self.whole_gradient(param) for name, param in self.core.named_parameters()}
        self.gradients.append({name: grad.detach().clone() for name, grad in grads.items() if grad is not None})

    def keep_weights(self) -> None:
        if self.keeps_weights:
            weights = {name: self.whole(name, param) for name, param in self.core.named_parameters()}
            self.weights.append({name: weight.detach().clone() for name, weight in weights.items()})

    def whole(self, name: str, param: nn.Parameter) -> torch.Tensor:
        if self.engine == "zero3":
            return self.joined(param.ds_tensor.data, param.ds_shape)
        return param.full_tensor() if self.engine == "fsdp2" else param

    def whole_gradient(self, param: nn.Parameter) -> torch.Tensor | None:
        if self.engine.startswith("zero"):
            from deepspeed.utils import safe_get_full_grad

            is_whole = self.engine == "zero3" and param.ds_tensor.numel() == param.ds_numel
            if is_whole or (self.variant == "" and getattr(param, "ds_persist", False)):
                raise AssertionError("ZeRO-3 left a parameter whole")
            return safe_get_full_grad(param)
        if self.engine == "fsdp2" and param.grad is not None:
            if not isinstance(self.trainer.model_wrapped, FSDPModule) or param.grad.to_local().numel() == param.numel():
                raise AssertionError("FSDP2 left a parameter whole")
            return param.grad.full_tensor()
        if self.engine == "none" and param.requires_grad and param.grad is None:
            raise AssertionError("the reference trains less than it says")
        return param.grad

    @staticmethod
    def joined(part: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """The whole from the parts of all ranks: rows (FSDP2) or slices of the flattened tensor, padded (ZeRO-3)."""
        parts = [torch.empty(0)] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, part)
        return torch.cat([part.flatten() for part in parts])[: shape.numel()].view(shape)

    def teacher(self) -> dict[str, torch.Tensor]:
        """The whole copies that a teacher has, in their own type."""
        weights = self.trainer.teacher.weights
        if not isinstance(weights, CopiedWeights):
            return {}
        if self.engine not in ("zero3", "fsdp2"):
            return weights.copies
        shapes = {name: getattr(param, "ds_shape", param.shape) for name, param in weights.params.items()}
        whole = {name: self.joined(part, shapes[name]) for name, part in weights.copies.items()}
        held = sum(part.numel() for part in weights.copies.values())
        if held > 0.6 * sum(tensor.numel() for tensor in whole.values()):
            raise AssertionError("one of two ranks holds more than half of the teacher, and the padding")
        return whole


def outcome(folder: str, engine: str, variant: str, options: dict[str, Any]) -> dict[str, Any]:
    """
    Train under an engine: gradients by step and parameter, the log, and the copies that the teacher has.

    Args:
        options (`dict`): Of `worker.build` and, to be told here, `weights` (keep them after each step), `resume` (begin
            anew from the checkpoint of the second step; the reference does without) and `evaluate_first`.
    """
    options = dict(options)
    own = {name: options.pop(name, False) for name in ("weights", "resume", "evaluate_first")}
    for resumes in [False, True] if own["resume"] and engine != "none" else [False]:
        AcceleratorState._reset_state(reset_partial_state=True)
        with layout(variant):
            trainer = worker.build(folder, {**options, **engine_options(engine, variant, "bfloat16" in options)})
            observer = Observer(trainer, engine, variant, own["weights"])
            trainer.add_callback(observer)
            if own["evaluate_first"]:
                trainer.evaluate()
            trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-2" if resumes else None)
    result = {"gradients": observer.gradients, "weights": observer.weights, "history": trainer.state.log_history}
    return result | {"teacher": {name: tensor.clone() for name, tensor in observer.teacher().items()}}


def main(folder: str, runs: list[dict]) -> None:
    torch.set_num_threads(1)
    engines = {run["engine"] for run in runs}
    if engines & {"fsdp2", "zero1", "zero2", "zero3"}:
        allow_engines_on_cpu()
    if engines & {"zero1", "zero2", "zero3"}:
        use_deepspeeds_slow_operators()
    for number, run in enumerate(runs):
        print(f"\n{run}", flush=True)
        try:
            result = outcome(f"{folder}/out-{number}", run["engine"], run["variant"], run["options"])
        except Exception:  # the other cases have their own say
            result = traceback.format_exc()
        torch.save(result, Path(folder) / f"{number}-{os.environ.get('RANK', 0)}.pt")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
