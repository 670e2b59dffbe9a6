# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Replicated parameters; those of ZeRO-3 and FSDP2 are tested with two processes in tests/distributed."""

import pytest
import torch
from torch import nn

from trl_opsd.engines import Unsharded


@pytest.fixture
def model():
    return nn.Linear(3, 2, dtype=torch.bfloat16)


def float32_copies(model):
    return {name: param.detach().float() + 1 for name, param in model.named_parameters()}


def test_what_is_swapped_in_has_the_type_of_the_parameters(model):
    """A float32 average does not turn the forward of a bfloat16 model into a float32 one."""
    params, copies = dict(model.named_parameters()), float32_copies(model)
    own = {name: param.detach().clone() for name, param in params.items()}
    with Unsharded().swapped_in(model, params, copies):
        for name, param in params.items():
            assert param.dtype == torch.bfloat16 and torch.equal(param, copies[name].bfloat16())
    assert all(torch.equal(param, own[name]) for name, param in params.items())


def test_only_the_process_that_saves_writes(model, tmp_path):
    params, copies = dict(model.named_parameters()), float32_copies(model)
    Unsharded().save(tmp_path, params, copies, should_save=False)
    assert not list(tmp_path.iterdir())
    Unsharded().save(tmp_path, params, copies, should_save=True)
    read = {name: torch.zeros_like(copy) for name, copy in copies.items()}
    Unsharded().load(tmp_path, params, read)
    assert all(torch.equal(read[name], copy) for name, copy in copies.items())
