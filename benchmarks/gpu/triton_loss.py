# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The fused linear divergence around the hand-written kernel: the package's own chunks, products and sums."""

from typing import Any

import torch

from benchmarks.gpu.triton_tile import divergence_tile
from benchmarks.losses import BETA, Inputs
from trl_opsd.kernels.chunks import chunks
from trl_opsd.kernels.grad_accumulator import GradAccumulator
from trl_opsd.kernels.head import Head


class _TritonDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, kind: str
    ) -> torch.Tensor:
        head, n = Head(weight).prepared(hidden), len(hidden)
        sums = GradAccumulator((hidden, weight, None), [True, True, False])
        cut = chunks(n, len(weight), 2, weight.dtype, weight.device, None)
        student_block, teacher_block = head.empty(cut[0].stop), head.empty(cut[0].stop)
        total = torch.zeros((), device=hidden.device)
        for rows in cut:
            raw = head.project(hidden[rows], student_block)
            logits = head.project(teacher[rows], teacher_block)
            total += divergence_tile(raw, logits, labels[rows], 1 / n, kind, BETA[kind])["divergence"].sum() / n
            sums.add(raw, hidden, rows, head)
        ctx.save_for_backward(*sums.tensors()[:2])
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = (torch.mul(one, grad_loss, out=torch.empty_like(one, dtype=dtype)) for one, dtype in pairs)
        return *scaled, None, None, None


def triton_loss(x: Inputs, kind: str) -> torch.Tensor:
    """Mean over tokens of the divergence, from hidden states."""
    return _TritonDivergence.apply(x.hidden, x.weight, x.teacher[0], x.labels, kind)
