# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Language-model head as plain data: logits from hidden states, and the gradient back through scale and soft-cap.

Legend: N tokens, H hidden size, V vocabulary.
"""

from dataclasses import dataclass

import torch


@dataclass
class Head:
    """
    Projection from hidden states to logits, with its bias, scale and soft-cap.

    Args:
        weight (`torch.Tensor` of shape `(V, H)`): Projection.
        bias (`torch.Tensor` of shape `(V,)`, *optional*): Its bias.
        scale (`float`, *optional*, defaults to `1.0`): Factor on the logits (Cohere, Granite).
        softcap (`float`, *optional*): Logits become softcap * tanh(logits / softcap) (Gemma 2).
        float32 (`bool`, *optional*, defaults to `False`): Whether the projection runs in float32, outside autocast.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    float32: bool = False

    def cut(self, vocabulary: int) -> "Head":
        """The head without rows from `vocabulary` on: padding that two models of one tokenizer may size differently."""
        if vocabulary == self.weight.shape[0]:
            return self
        bias = None if self.bias is None else self.bias[:vocabulary]
        return Head(self.weight[:vocabulary], bias, self.scale, self.softcap, self.float32)

    def compute_dtype(self, hidden: torch.Tensor) -> torch.dtype:
        """Type of the matrix products: that of the running autocast if any, else that of the hidden states."""
        if self.float32:
            return torch.float32
        device = hidden.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype

    def prepared(self, hidden: torch.Tensor) -> "Head":
        """The same head, detached and in the type of the matrix products, cast once and not once per chunk."""
        dtype = self.compute_dtype(hidden)
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        return Head(self.weight.detach().to(dtype), bias, self.scale, self.softcap, self.float32)

    def empty(self, tokens: int) -> torch.Tensor:
        """Memory for what [`project`] gives."""
        return self.weight.new_empty(tokens, len(self.weight))

    def project(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """
        Raw logits in the type of the matrix products; for a [`prepared`] head.

        Args:
            hidden (`torch.Tensor` of shape `(c, H)`): Hidden states.
            out (`torch.Tensor` of shape `(C, V)`, *optional*): Its first c rows are written and returned.
        """
        states = hidden.to(self.weight.dtype)
        out = self.empty(len(states)) if out is None else out[: len(states)]
        with torch.autocast(hidden.device.type, enabled=False):
            if self.bias is None:
                return torch.mm(states, self.weight.T, out=out)
            return torch.addmm(self.bias, states, self.weight.T, out=out)

    def transform(self, raw: torch.Tensor) -> torch.Tensor:
        """Logits, at least float32, from what [`project`] gave: scaled and soft-capped."""
        logits = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def back_through_transform(self, gradient: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        """Gradient on what [`project`] gave, from the gradient on what [`transform`] makes of it (both `(N, V)`)."""
        if self.softcap is not None:
            capped = torch.tanh(raw.to(gradient.dtype) * (self.scale / self.softcap))
            gradient = gradient * (1 - capped**2)
        return gradient * self.scale if self.scale != 1.0 else gradient
