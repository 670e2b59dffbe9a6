# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The tests of the kernels run on a GPU where there is one."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from devices import device


@pytest.fixture(autouse=True)
def default_device() -> Iterator[None]:
    """Tensors that a test makes without naming a device are on that of the tests."""
    with nullcontext() if device() == "cpu" else torch.device(device()):
        yield
