# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Patch of a causal language model's forward, by which it answers the requests of distillation."""

import functools
import types
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from trl_opsd.batches.pixels import without_empty_pixels
from trl_opsd.model.head import check_head
from trl_opsd.model.head_check import HeadCheckRequest
from trl_opsd.model.positions import PaddedPositions


def add_distillation_forward(model: PreTrainedModel, virtual_tokens: bool = False) -> None:
    """
    Let `model(..., distillation=request)` answer a [`~trl_opsd.model.forward.TeacherRequest`], a
    [`~trl_opsd.model.forward.StudentRequest`] or a [`HeadCheckRequest`]. Without it nothing changes, but that a model
    with absolute positions, or behind virtual tokens, counts positions from each row's own first token.

    Call it after TRL's `add_fused_lm_head` and before any wrapping, on the model under a PEFT wrapper. Copies of the
    model answer with their own weights.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model to patch.
        virtual_tokens (`bool`): Whether its PEFT wrapper puts virtual tokens before every row.

    Raises:
        ValueError: If its head is no plain matrix. See [`~trl_opsd.model.head.check_head`].
        ValueError: By the patched forward, as [`HeadCheckRequest`] and [`PaddedPositions`] say.
    """
    check_head(model)
    fused, positions = model.forward, PaddedPositions(virtual_tokens)

    # Keep the original signature: `generate` validates its model kwargs against it
    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, distillation: Any = None, **kwargs: Any) -> Any:
        inner = fused if self is model else _of_copy(self, fused)
        if "pixel_values" in kwargs:
            kwargs = without_empty_pixels(kwargs)
        if isinstance(distillation, HeadCheckRequest):  # its error says more than that of padding
            output = distillation.run(self, inner, args, kwargs)
            positions.added(self, args, kwargs)
            return output
        kwargs = positions.added(self, args, kwargs)
        if distillation is None:
            return inner(*args, **kwargs)
        return distillation.run(self, inner, args, kwargs)

    model.forward = types.MethodType(forward, model)


def _of_copy(copy: PreTrainedModel, fused: types.MethodType) -> Callable[..., Any]:
    """TRL's forward `fused` of the model that it was made for, for a copy of that model. Past the head it keeps calling
    the first model."""

    def forward(*args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if fused_lm_head:
            return fused.__func__(copy, *args, fused_lm_head=True, **kwargs)
        return type(copy).forward(copy, *args, **kwargs)

    return forward
