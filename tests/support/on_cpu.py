# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Lets the engines that accelerate keeps for accelerators run on CPUs: `on_cpu.py script.py arguments` runs a script so.
"""

import os


os.environ["CUDA_VISIBLE_DEVICES"] = ""  # two ranks can't share one GPU

import transformers.training_args
from accelerate.state import PartialState
from accelerate.utils import DistributedType

import rank


def allow_engines_on_cpu(kind: DistributedType = DistributedType.MULTI_GPU) -> None:
    """
    Accelerate turns FSDP and DeepSpeed on for accelerators alone; all that follows from it runs on CPUs too.

    Under its own DeepSpeed config with `use_cpu`, every rank counts one process and trains on the same rows.

    Args:
        kind (`DistributedType`): What accelerate takes the processes for, before it looks for an engine.
    """
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True  # asked of all that is not `use_cpu`
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", kind)


def use_deepspeeds_slow_operators() -> None:
    """DeepSpeed would compile an operator for gloo's all-reduce in shared memory, which takes minutes."""
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}


def main() -> None:
    deepspeed, fsdp = (os.environ.get(f"ACCELERATE_USE_{engine}") == "true" for engine in ("DEEPSPEED", "FSDP"))
    allow_engines_on_cpu(DistributedType.MULTI_GPU if deepspeed or fsdp else DistributedType.MULTI_CPU)
    if deepspeed:
        use_deepspeeds_slow_operators()
    rank.main()


if __name__ == "__main__":
    main()
