# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The hand-written Triton kernel, which is a yardstick of the GPU check, against the reference of the tests.

Without a GPU it runs in Triton's interpreter, which must be on before the kernel is defined.
"""

import os

import pytest
import torch

import reference
from devices import device
from trl_opsd.losses import DivergenceSpec


pytest.importorskip("triton")


@pytest.fixture(scope="module")
def triton_tile():
    before = os.environ.get("TRITON_INTERPRET")
    if device() == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from benchmarks.gpu import triton_tile

    yield triton_tile
    os.environ.pop("TRITON_INTERPRET", None)
    if before is not None:
        os.environ["TRITON_INTERPRET"] = before


T, V = 3, 5000  # more than one block, and not a whole number of them
SPECS = {
    "forward_kl": DivergenceSpec("forward_kl"),
    "reverse_kl": DivergenceSpec("reverse_kl"),
    "jsd": DivergenceSpec("jsd", alpha=0.5),
}
EXACT = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # of the gradient, which has that type


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("kind", SPECS)
def test_against_reference(triton_tile, kind, dtype):
    draw = torch.Generator().manual_seed(3)
    student, teacher = ((3 * torch.randn(T, V, generator=draw)).to(dtype) for _ in range(2))
    labels = torch.randint(V, (T,), generator=draw)
    exact = student.double().requires_grad_()
    weights = torch.full((1, T), 0.7, dtype=torch.float64)
    loss, wants = reference.dense_loss(exact, [teacher.double()], labels, weights, SPECS[kind], None, "a")
    (want,) = torch.autograd.grad(loss, exact)

    raw = student.to(device())
    stats = triton_tile.divergence_tile(raw, teacher.to(device()), labels.to(device()), 0.7, kind)
    assert raw.dtype == dtype
    assert (raw.double().cpu() - want).norm() < EXACT[dtype] * want.norm()
    for name, value in stats.items():
        torch.testing.assert_close(value.double().cpu(), wants[name].reshape(T).detach(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", SPECS)
def test_agreement_gives_no_gradient(triton_tile, kind):
    raw = torch.randn(T, V, generator=torch.Generator().manual_seed(4)).to(device())
    labels = torch.zeros(T, dtype=torch.long, device=device())
    triton_tile.divergence_tile(raw, raw.clone(), labels, 1.0, kind)
    assert raw.abs().max() < 1e-7


def test_the_whole_loss(triton_tile):
    """Values and gradients of the chunk loop, beside the package's own loss."""
    from benchmarks.gpu.triton_loss import triton_loss
    from benchmarks.losses import make_inputs, ours

    for kind in SPECS:
        found = []
        for loss in (triton_loss, ours):
            x = make_inputs(7, 8, 300).to(device())
            value = loss(x, kind)
            (2 * value).backward()
            found.append([value.detach(), x.hidden.grad, x.weight.grad])
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-7)
