# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Random state of a process: of Python, NumPy, torch on the CPU and the accelerators it sees."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import set_seed


@contextmanager
def keep_random_state(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """
    Put the random state back at the end of the block. That of a vLLM engine in a process of its own is not in it.

    Args:
        device (`torch.device`): Device of the process.
        seed (`int`, *optional*): Seed that the block begins with; `None` to go on from the present state.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=list(devices)):
            if seed is not None:
                set_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
