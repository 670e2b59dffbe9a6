# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of tests/test_scale.py: trains under each engine and saves how many bytes it holds of what."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


from on_cpu import allow_engines_on_cpu, use_deepspeeds_slow_operators  # isort: skip, it hides the GPUs

import torch
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor

import worker
from sharded_worker import engine_options
from trl_opsd import OPSDTrainer


def local_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum((tensor.to_local() if isinstance(tensor, DTensor) else tensor).nbytes for tensor in tensors)


def states(optimizer: Any) -> list[torch.Tensor]:
    """AdamW's averages, without its counts of steps."""
    return [value for state in optimizer.state.values() for value in state.values() if getattr(value, "ndim", 0)]


def held(trainer: OPSDTrainer, engine: str) -> dict[str, int]:
    """Bytes of weights, optimizer and teacher on this rank."""
    params = list(trainer.accelerator.unwrap_model(trainer.model_wrapped).parameters())
    optimizer = trainer.optimizer.optimizer
    masters: list[torch.Tensor] = []
    if engine == "zero2":
        masters = optimizer.single_partition_of_fp32_groups
    elif engine == "zero3":
        params, masters = [param.ds_tensor for param in params], optimizer.fp32_partitioned_groups_flat
    return {
        "weights": local_bytes(params),
        "optimizer": local_bytes([*masters, *states(optimizer.optimizer if masters else optimizer)]),
        "teacher": local_bytes(trainer.teacher.weights.copies.values()),
    }


def main(folder: str, shape: dict[str, Any], engines: list[str]) -> None:
    torch.set_num_threads(1)
    allow_engines_on_cpu()
    use_deepspeeds_slow_operators()
    result = {}
    for engine in engines:
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):  # what the engine before left
            os.environ.pop(name, None)
        options = {
            "model_options": shape,
            "rows_with_view": [0, 1, 2],
            "optim": "adamw_torch",
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "teacher_model_kind": "base",
            **engine_options(engine, "reshard", bfloat16=False),
        }
        trainer = worker.build(folder, options)
        trainer.train()
        result[engine] = held(trainer, engine)
    (Path(folder) / f"held-{os.environ['RANK']}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]))
