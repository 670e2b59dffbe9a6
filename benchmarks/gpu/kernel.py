# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Part `kernel`: time of loss and backward over the bare matrix products of the same run, peak memory, and errors of value
and gradients against float32 products on the first tokens.

Legend: N tokens, H hidden size, V vocabulary.
"""

import time
from collections.abc import Container, Iterable
from functools import partial

import torch

from benchmarks.gpu.contenders import (
    COMPILED,
    FLOAT32,
    FULL,
    FULL_COMPILED,
    LIGER_COMPILED,
    LIGER_TRITON,
    OURS,
    TRITON,
    TRL,
    contenders,
)
from benchmarks.gpu.part import Part
from benchmarks.gpu.profiling import busy
from benchmarks.losses import KINDS, Floor, Inputs, Loss, contender, full_logits, make_inputs
from benchmarks.report import Row


SIZES = [(4096, 1024, 151936), (4096, 4096, 151936), (4096, 4096, 128256), (4096, 2048, 151936)]  # N, H, V
TINY_SIZES = [(320, 16, 300)]  # of the tokens from which a chunk is compiled
FEW = 512  # tokens whose values and gradients are compared
ELSEWHERE = (OURS, TRITON, TRL, FULL, LIGER_TRITON, FULL_COMPILED)  # at the sizes after the first
LEFT_OUT = {(FLOAT32, "reverse_kl"), (FLOAT32, "jsd")}  # the first tells what float32 logits cost
COMPILE_SECONDS, SECONDS = 15.0, 4.0  # for a contender that is compiled first, and for another


def run(part: Part) -> None:
    losses = contenders(part.tiny)
    first, *others = TINY_SIZES if part.tiny else SIZES
    kinds, late = KINDS[:1] if part.tiny else KINDS, {LIGER_COMPILED}  # which takes longest to compile
    Case(part, first, losses).run(kinds, losses.keys() - late)
    part.attempt("profile", lambda: profile(part, first, losses[OURS]), need=8)
    for size in others:
        Case(part, size, losses).run(kinds, ELSEWHERE)
    if late & losses.keys():
        Case(part, first, losses).run(kinds, late)


class Case:
    """All contenders on the inputs of one size."""

    def __init__(self, part: Part, size: tuple[int, int, int], losses: dict[str, Loss]):
        self.part, self.size, self.losses = part, size, losses
        self.floor: float | None = None

    def run(self, kinds: Iterable[str], names: Container[str]) -> None:
        self.part.attempt("floor", self.measure_floor, need=6)
        if self.floor is None:
            return
        for kind in kinds:
            truth = self.exact(kind)
            for name, loss in self.losses.items():
                if name in names and (name, kind) not in LEFT_OUT:
                    need = COMPILE_SECONDS if name in COMPILED else SECONDS
                    self.part.attempt(f"{name}, {kind}", partial(self.measure, name, loss, kind, truth), need)

    def measure_floor(self) -> Row:
        self.inputs = make_inputs(*self.size, dtype=torch.bfloat16, device=self.part.device)
        self.inputs.hidden.requires_grad_(), self.inputs.weight.requires_grad_()
        floor = Floor(self.inputs, (1024, 2048))
        for _ in range(2):
            floor()
        found = sorted(floor().seconds for _ in range(5))
        self.floor, (n, h, v) = found[2], self.size
        return {"size": self.size, "seconds": self.floor, "tflop_s": 8 * n * h * v / self.floor / 1e12}

    def few(self, dtype: torch.dtype) -> Inputs:
        x = self.inputs.head(FEW)
        hidden, weight = (one.detach().to(dtype).requires_grad_() for one in (x.hidden, x.weight))
        return Inputs(hidden, weight, x.teacher.to(dtype), x.labels)

    def exact(self, kind: str) -> list[torch.Tensor]:
        """Value and gradients from float32 products of the same numbers."""
        torch.backends.cuda.matmul.allow_tf32 = False
        return outcome(full_logits, self.few(torch.float32), kind)

    def measure(self, name: str, loss: Loss, kind: str, truth: list[torch.Tensor]) -> Row:
        run = contender(loss, self.inputs, kind)
        start = time.perf_counter()
        run()  # all tokens first: Inductor chooses its loops by the first size that it sees
        if self.part.device == "cuda":
            torch.cuda.synchronize()
        first_call = time.perf_counter() - start
        timed = self.part.timed(run, repeats=2 if self.part.tiny else 5)
        found = outcome(loss, self.few(torch.bfloat16), kind)
        errors = [float((one.float() - want).norm() / want.norm()) for one, want in zip(found, truth, strict=True)]
        names = ("value_error", "hidden_gradient_error", "weight_gradient_error")
        return {
            "size": self.size,
            "kind": kind,
            "name": name,
            "over_floor": timed["seconds"] / self.floor,
            **timed,
            "first_call_s": first_call,
            **dict(zip(names, errors, strict=True)),
        }


def outcome(loss: Loss, x: Inputs, kind: str) -> list[torch.Tensor]:
    """Value and both gradients; some contenders run their own backward pass."""
    value = loss(x, kind)
    if value.requires_grad:
        value.backward()
    return [value.detach(), x.hidden.grad, x.weight.grad]


def profile(part: Part, size: tuple[int, int, int], loss: Loss) -> Row:
    """Kernels of the package's loss, by the time that they take."""
    x = make_inputs(*size, dtype=torch.bfloat16, device=part.device).to(part.device)
    run = contender(loss, x, "forward_kl")
    run()
    return {"size": size, **busy(run, part.device)}
