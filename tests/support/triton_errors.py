# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Errors of the hand-written Triton kernel against the reference, printed as JSON. A script of its own: without a GPU it
runs in Triton's interpreter, and the environment variable for that must be set before anything imports Triton.
"""

import json
import os

import torch

from devices import device


if device() == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import reference
from benchmarks.gpu.triton_loss import triton_loss
from benchmarks.gpu.triton_tile import KINDS, divergence_tile
from benchmarks.losses import BETA, make_inputs, ours
from trl_opsd.losses import DivergenceSpec


T, V = 3, 5000  # more than one block, and not a whole number of them
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def against_reference(kind: str, dtype: torch.dtype) -> dict[str, float]:
    """Relative error of the gradient, and greatest difference of each statistic."""
    draw = torch.Generator().manual_seed(3)
    student, teacher = ((3 * torch.randn(T, V, generator=draw)).to(dtype) for _ in range(2))
    labels, weights = torch.randint(V, (T,), generator=draw), torch.full((1, T), 0.7, dtype=torch.float64)
    exact = student.double().requires_grad_()
    spec = DivergenceSpec(alpha=BETA[kind])
    loss, wants = reference.dense_loss(exact, [teacher.double()], labels, weights, spec, None, "a")
    (want,) = torch.autograd.grad(loss, exact)
    raw = student.to(device())
    stats = divergence_tile(raw, teacher.to(device()), labels.to(device()), 0.7, kind, BETA[kind])
    found = {name: float((value.double().cpu() - wants[name].flatten()).abs().max()) for name, value in stats.items()}
    return {**found, "gradient": float((raw.double().cpu() - want).norm() / want.norm())}


def at_agreement(kind: str) -> float:
    """Greatest entry of the gradient where the teacher equals the student."""
    raw = torch.randn(T, V, generator=torch.Generator().manual_seed(4)).to(device())
    labels = torch.zeros(T, dtype=torch.long, device=device())
    divergence_tile(raw, raw.clone(), labels, 1.0, kind, BETA[kind])
    return float(raw.abs().max())


def whole_loss(kind: str) -> float:
    """Greatest relative difference of value and gradients from the package's own loss, through chunks and sums."""
    found = []
    for loss in (triton_loss, ours):
        x = make_inputs(7, 8, 300).to(device())
        value = loss(x, kind)
        (2 * value).backward()
        found.append([value.detach(), x.hidden.grad, x.weight.grad])
    return max(float((one - other).norm() / other.norm()) for one, other in zip(*found, strict=True))


def main() -> None:
    errors = {
        kind: {
            **{name: against_reference(kind, dtype) for name, dtype in DTYPES.items()},
            "agreement": at_agreement(kind),
            "whole loss": whole_loss(kind),
        }
        for kind in KINDS
    }
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
