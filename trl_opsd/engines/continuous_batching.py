# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Generation by transformers' continuous batching that leaves the trained model as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def preserve_model_state(model: nn.Module) -> Iterator[None]:
    """
    Restore the training mode, weights and buffers that TRL 1.16 changes around `generate_batch`.

    TRL leaves the model in training mode, also in an evaluation, whose rows would then count as training's. With `bf16`
    or `fp16` it casts the trained weights and buffers for good, from float32 to the type that autocast would only
    compute in. Sampling still uses the cast weights; while it lasts, both are in memory.

    Args:
        model (`torch.nn.Module`): The trained model.
    """
    training = model.training
    weights = [(weight, weight.data) for weight in model.parameters()]
    buffers = [
        (module, name, buffer) for module in model.modules() for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for weight, data in weights:
            if weight.dtype != data.dtype:
                weight.data = data
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
        model.train(training)
