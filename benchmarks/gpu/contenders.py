# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Contenders of the kernel part, beside those of `benchmarks/losses.py`: the package's loss compiled, uncompiled and with
float32 logits, and what needs Triton or a compiler.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from unittest import mock

import torch

from benchmarks.losses import BETA, FULL, LIGER, LOSSES, OURS, TRL, Inputs, Loss, full_logits
from trl_opsd.kernels import fused_linear_divergence
from trl_opsd.kernels.compiled import SWITCH
from trl_opsd.kernels.grad_accumulator import GradAccumulator
from trl_opsd.kernels.head import Head
from trl_opsd.losses import DivergenceSpec


UNCOMPILED, FLOAT32 = "ours, uncompiled", "ours, float32 logits"
TRITON = "Triton by hand"
FULL_COMPILED, LIGER_COMPILED, LIGER_TRITON = "full logits, compiled", "Liger, compiled", "Liger, Triton"
COMPILED = (OURS, FLOAT32, FULL_COMPILED, LIGER_COMPILED)  # at their first call, for seconds


@contextmanager
def compilation(on: bool) -> Iterator[None]:
    """Let the elementwise pass be compiled or not, on any device; a compilation that fails is an error."""
    before = os.environ.get(SWITCH, "")
    os.environ[SWITCH] = "1" if on else "0"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*torch.compile. failed")
            yield
    finally:
        os.environ[SWITCH] = before


def ours(compiled: bool) -> Loss:
    """The package's loss. On a CPU, whose chunks are too small to be compiled, all tokens are one."""

    def run(x: Inputs, kind: str) -> torch.Tensor:
        chunk = len(x.hidden) if compiled and not x.hidden.is_cuda else None
        options = {"labels": x.labels, "spec": DivergenceSpec(alpha=BETA[kind]), "chunk_size": chunk}
        with compilation(compiled):
            return fused_linear_divergence(x.hidden, x.weight, x.teacher, **options)[0]

    return run


@contextmanager
def float32_logits() -> Iterator[None]:
    """Let products of half precision give float32 logits. Their gradient is cast back before its own products."""

    def empty(head: Head, tokens: int) -> torch.Tensor:
        return torch.empty(tokens, len(head.weight), dtype=torch.float32, device=head.weight.device)

    def project(head: Head, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        out = empty(head, len(hidden)) if out is None else out[: len(hidden)]
        if hidden.is_cuda:
            return torch.mm(hidden, head.weight.T, out_dtype=torch.float32, out=out)
        return torch.mm(hidden.float(), head.weight.T.float(), out=out)

    def add(sums: GradAccumulator, gradient: torch.Tensor, hidden: torch.Tensor, rows: slice, head: Head) -> None:
        inner(sums, gradient.to(head.weight.dtype), hidden, rows, head)

    inner = GradAccumulator.add
    with (
        mock.patch.object(Head, "empty", empty),
        mock.patch.object(Head, "project", project),
        mock.patch.object(GradAccumulator, "add", add),
    ):
        yield


def ours_float32(compiled: bool) -> Loss:
    def run(x: Inputs, kind: str) -> torch.Tensor:
        with float32_logits():
            return ours(compiled)(x, kind)

    return run


def triton_by_hand(x: Inputs, kind: str) -> torch.Tensor:
    from benchmarks.gpu.triton_loss import triton_loss

    return triton_loss(x, kind)


def liger_triton(x: Inputs, kind: str) -> torch.Tensor:
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    return LigerFusedLinearJSDFunction.apply(x.hidden, x.weight, x.teacher[0], x.weight.detach(), None, BETA[kind])


def liger_compiled(x: Inputs, kind: str) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA[kind], compiled=True)
    return loss(x.hidden, x.weight, x.teacher[0], x.weight.detach(), x.labels)


def contenders(tiny: bool) -> dict[str, Loss]:
    """By name, the most telling first. In tiny sizes those that run on a CPU, of which one compiles."""
    made = {
        OURS: ours(compiled=True),
        TRITON: triton_by_hand,
        TRL: LOSSES[TRL],
        FULL: full_logits,
        UNCOMPILED: ours(compiled=False),
        LIGER_TRITON: liger_triton,
        FULL_COMPILED: torch.compile(full_logits),
        FLOAT32: ours_float32(compiled=not tiny),
        LIGER_COMPILED: liger_compiled,
    }
    missing = set()
    if tiny:
        missing |= {TRITON, FULL_COMPILED}
    if tiny or find_spec("liger_kernel") is None:
        missing |= {LIGER_TRITON, LIGER_COMPILED}
        made |= {LIGER: LOSSES[LIGER]} if tiny and LIGER in LOSSES else {}
    return {name: loss for name, loss in made.items() if name not in missing}
