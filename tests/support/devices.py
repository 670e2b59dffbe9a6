# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Device of the tests that make tensors of their own. Trainers choose the same one by themselves."""

import torch


def device() -> str:
    """The first GPU where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
