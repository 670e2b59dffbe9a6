# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Accumulator of the gradients on hidden states and head, chunk by chunk.

Legend: N tokens, H hidden size, V vocabulary, c tokens of a chunk.
"""

import torch

from trl_opsd.kernels.head import Head


class GradAccumulator:
    """
    Sums of the gradients over chunks, in float32 at least: half precision would round them.

    Args:
        leaves (`tuple[torch.Tensor or None]`): Hidden states `(N, H)`, head weight and head bias.
        needed (`list[bool]`): Which of them need a gradient. `wanted` says whether any does.
    """

    def __init__(self, leaves: tuple[torch.Tensor | None, ...], needed: list[bool]):
        self.leaves, self.needed, self.wanted = leaves, needed, any(needed)
        self.dtype = torch.promote_types(leaves[1].dtype, torch.float32)
        self.hidden = torch.zeros_like(leaves[0], dtype=self.dtype) if needed[0] else None
        # The largest array of all. The first chunk's product makes it, which spares filling it with zeros
        self.weight: torch.Tensor | None = None
        self.bias = torch.zeros_like(leaves[2], dtype=self.dtype) if needed[2] else None

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """The gradients, `None` where none is asked for."""
        if self.needed[1] and self.weight is None:
            self.weight = torch.zeros_like(self.leaves[1], dtype=self.dtype)
        return self.hidden, self.weight, self.bias

    def add(self, gradient: torch.Tensor, hidden: torch.Tensor, rows: slice, head: Head) -> None:
        """
        Add the gradients of one chunk.

        Args:
            gradient (`torch.Tensor` of shape `(c, V)`): On the raw logits, in the type of the matrix products.
            hidden (`torch.Tensor` of shape `(N, H)`): Student hidden states of all chunks.
            rows (`slice`): The chunk.
            head ([`Head`]): Prepared student head.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            if self.hidden is not None:
                self._write_hidden(gradient, head.weight, self.hidden[rows])
            if self.needed[1]:
                self._add_weight(gradient.T, hidden[rows].to(gradient.dtype))
        if self.bias is not None:
            self.bias += gradient.sum(0, dtype=self.dtype)

    def _write_hidden(self, gradient: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        if _gives_float32(gradient):
            torch.mm(gradient, weight, out_dtype=torch.float32, out=out)
        else:
            out.copy_(gradient @ weight)

    def _add_weight(self, gradient: torch.Tensor, states: torch.Tensor) -> None:
        if _gives_float32(gradient):
            if self.weight is None:
                self.weight = torch.mm(gradient, states, out_dtype=torch.float32)
            else:
                torch.addmm(self.weight, gradient, states, out_dtype=torch.float32, out=self.weight)
        elif self.weight is None:
            self.weight = (gradient @ states).to(self.dtype)
        elif gradient.dtype == self.dtype:
            self.weight.addmm_(gradient, states)
        else:
            self.weight += gradient @ states


def _gives_float32(gradient: torch.Tensor) -> bool:
    """Whether a product in half precision can be summed and given in float32: the sum over chunks is then rounded once
    in the end, and takes 8 bytes an entry instead of 12."""
    return gradient.device.type == "cuda" and gradient.dtype in (torch.bfloat16, torch.float16)
