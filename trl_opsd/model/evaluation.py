# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Evaluation of a model beside its training: without dropout, and how exact what it computes is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout disabled within this block: modules in training mode are in evaluation mode."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def rounding_step(model: PreTrainedModel, hidden: torch.Tensor) -> float:
    """
    Relative step of the coarsest type among those of a model's weights, its hidden states and a running autocast.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model.
        hidden (`torch.Tensor`): Hidden states that it gave, of any shape.
    """
    types, device = {model.dtype, hidden.dtype}, hidden.device.type
    if torch.is_autocast_enabled(device):
        types.add(torch.get_autocast_dtype(device))
    return max(torch.finfo(one).eps for one in types)
