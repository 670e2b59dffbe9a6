# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`trl_opsd.kernels` in half precision, under autocast and under a loss scale, against the reference."""

from dataclasses import replace

import pytest
import torch

from devices import device
from kernel_cases import SINGLE, SPECS, close, every_spec, make
from trl_opsd.kernels import PolicyTerm


@every_spec
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    spec = SPECS[name]
    case = make(dtype=dtype, seed=16, transform={"softcap": 4.0}, chunk_size=4)
    loss, stats = case.run(spec)
    want, want_stats = case.expected(spec)
    assert loss.dtype == torch.float32
    coarse = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), want, rtol=coarse, atol=coarse)
    for key in ("divergence", "student_logps", "teacher_logps", "student_entropy", "teacher_entropy"):
        torch.testing.assert_close(stats[key].double(), want_stats[key], rtol=coarse, atol=coarse)
    leaves = case.leaves()
    wants = torch.autograd.grad(want, leaves)
    for leaf, gradient, value in zip(leaves, torch.autograd.grad(loss, leaves), wants, strict=True):
        assert gradient.dtype == dtype and gradient.shape == leaf.shape
        assert 0 < (gradient - value).norm() < 3 * coarse * value.norm()


def test_half_precision_sums_over_chunks_in_float32():
    # A running sum in bfloat16 stops at 256 equal terms
    case = make(n=1, k=1, dtype=torch.bfloat16, seed=17)
    case.weights.fill_(1.0)
    one = torch.autograd.grad(case.run(SPECS["forward"])[0], case.leaves())
    many = replace(
        case,
        hidden=case.hidden.detach().expand(2000, -1).clone().requires_grad_(),
        teacher_hidden=case.teacher_hidden.expand(1, 2000, -1),
        labels=case.labels.expand(2000),
        weights=case.weights.expand(1, 2000),
        old_logps=None,
        chunk_size=1,
    )
    got = torch.autograd.grad(many.run(SPECS["forward"])[0], many.leaves())
    for gradient, single in zip(got[1:], one[1:], strict=True):
        assert (gradient.float() - 2000 * single.float()).norm() < 0.02 * (2000 * single.float()).norm()


@pytest.mark.parametrize("mixed", [False, True], ids=["float16", "autocast"])
@pytest.mark.parametrize("factor", [2**15, 2**16])  # the second, above the largest float16, is GradScaler's first
def test_float16_under_a_loss_scale(mixed, factor):
    # Weights of 1 / 20000, as a mean over a batch has. A gradient formed at that size falls below the least float16,
    # out of reach of the factor that is to lift it, which arrives in backward.
    case = make(n=16, k=1, dtype=torch.float32 if mixed else torch.float16, bias=False, seed=18, v=4000)
    case.weights = torch.full((1, 16), 1 / 20_000)
    with torch.autocast(device(), torch.float16, enabled=mixed):
        loss = case.run(SPECS["forward"])[0]
    leaves = case.leaves()
    wants = torch.autograd.grad(case.expected(SPECS["forward"])[0] * factor, leaves)
    for gradient, want in zip(torch.autograd.grad(loss * factor, leaves), wants, strict=True):
        assert (gradient - want).norm() < 0.01 * want.norm()


@every_spec
def test_autocast(name):
    spec = SPECS[name]
    case = make(dtype=torch.float32, seed=19, transform={"scale": 0.5})
    with torch.autocast(device(), torch.bfloat16):
        loss, stats = case.run(spec)
        outside = torch.autograd.grad(loss, case.leaves())
    # The same as inputs rounded by hand
    halved = {
        part: getattr(case, part).detach().bfloat16().requires_grad_(getattr(case, part).requires_grad)
        for part in ("hidden", "weight", "bias", "teacher_hidden", "teacher_weight", "teacher_bias")
    }
    by_hand = replace(case, **halved)
    want, want_stats = by_hand.run(spec)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, want, rtol=0, atol=0)
    for key, value in want_stats.items():
        torch.testing.assert_close(stats[key], value, rtol=0, atol=0)
    gradients = torch.autograd.grad(want, by_hand.leaves())
    for leaf, gradient, value in zip(case.leaves(), outside, gradients, strict=True):
        assert gradient.dtype == leaf.dtype
        assert (gradient - value.float()).norm() <= 0.02 * value.float().norm()
    # The gradient of the bias is a sum in float32
    assert not torch.equal(outside[2], outside[2].bfloat16().float())
    # And it did round
    assert not torch.equal(loss, case.run(spec)[0])


@every_spec
def test_float32_head_under_autocast(name):
    case = make(dtype=torch.float32, seed=20, transform={"float32": True}, teacher_transform={"float32": True})
    want, _ = case.run(SPECS[name])
    wants = torch.autograd.grad(want, case.leaves())
    with torch.autocast(device(), torch.bfloat16):
        loss, _ = case.run(SPECS[name])
        gradients = torch.autograd.grad(loss, case.leaves())
    torch.testing.assert_close(loss, want, rtol=0, atol=0)
    for gradient, value in zip(gradients, wants, strict=True):
        torch.testing.assert_close(gradient, value, rtol=0, atol=0)


def test_float32_head_of_a_bfloat16_model():
    case = make(dtype=torch.bfloat16, seed=21, transform={"float32": True}, teacher_transform={"float32": True})
    loss, stats = case.run(SPECS["reverse"])
    want, want_stats = case.expected(SPECS["reverse"])
    torch.testing.assert_close(loss.double(), want, **SINGLE)
    for key, value in want_stats.items():
        torch.testing.assert_close(stats[key].double(), value, **SINGLE)
    leaves = case.leaves()
    wants = torch.autograd.grad(want, leaves)
    for gradient, value in zip(torch.autograd.grad(loss, leaves), wants, strict=True):
        torch.testing.assert_close(gradient, value, rtol=0.01, atol=1e-5)  # rounded once, at the end


@pytest.mark.parametrize("float32", [("transform",), ("teacher_transform",)], ids=["student", "teacher"])
def test_one_float32_head(float32):
    case = make(dtype=torch.bfloat16, seed=21, k=2, chunk_size=4, **{part: {"float32": True} for part in float32})
    loss, stats = case.run(SPECS["reverse"])
    want, want_stats = case.expected(SPECS["reverse"])
    coarse = {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(loss.double(), want, **coarse)
    exact, rough = ("student", "teacher") if float32 == ("transform",) else ("teacher", "student")
    for name in ("logps", "entropy"):
        torch.testing.assert_close(stats[f"{exact}_{name}"].double(), want_stats[f"{exact}_{name}"], **SINGLE)
        torch.testing.assert_close(stats[f"{rough}_{name}"].double(), want_stats[f"{rough}_{name}"], **coarse)


def least(n: int) -> PolicyTerm:
    """A policy loss as small as a mean over a large batch."""
    return PolicyTerm(lambda logps, entropies: (-logps.sum() - 0.1 * entropies.sum()) / 20_000, 1.3)


@pytest.mark.parametrize("m", [16, 5, 0])
@pytest.mark.parametrize("chunk_size", [4, None])
def test_policy_in_float16_under_a_loss_scale(m, chunk_size):
    case = make(n=16, m=m, k=1, dtype=torch.float16, seed=18, v=4000, policy=least(16), chunk_size=chunk_size)
    case.weights = torch.full((1, m), 1 / 20_000)
    gradients = torch.autograd.grad(case.run(SPECS["forward"])[0] * 2**16, case.leaves())
    wants = torch.autograd.grad(case.expected(SPECS["forward"])[0] * 2**16, case.leaves())
    for gradient, want in zip(gradients, wants, strict=True):
        assert (gradient - want).norm() < 0.01 * want.norm()


@pytest.mark.parametrize("policy", [None, PolicyTerm(lambda logps, entropies: 0 * logps.sum(), 1.0)])
def test_zero_weights_in_float16(policy):
    case = make(dtype=torch.float16, seed=18, policy=policy)
    case.weights.zero_()
    loss = case.run(SPECS["forward"])[0]
    assert loss == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss * 2**16, case.leaves()))


@every_spec
def test_policy_under_autocast(name):
    policy = PolicyTerm(lambda logps, entropies: 3 * (logps.exp() - 0.3 * entropies).sum(), 0.8)
    case = make(n=12, m=7, dtype=torch.float32, seed=19, policy=policy, chunk_size=5)
    with torch.autocast(device(), torch.bfloat16):
        loss, stats = case.run(SPECS[name])
    alone = replace(case, policy=None)
    with torch.autocast(device(), torch.bfloat16):
        rest, rest_stats = alone.run(SPECS[name])
    assert loss.dtype == torch.float32
    close(stats.values(), rest_stats.values(), rtol=0, atol=0)
    both = case.expected(SPECS[name])[0]
    part = both - alone.expected(SPECS[name])[0]
    torch.testing.assert_close((loss - rest).double(), part, rtol=0.03, atol=1e-3)
    gots, wants = (torch.autograd.grad(value, case.leaves()) for value in (loss - rest, part))
    for got, want in zip(gots, wants, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize("name", ["forward", "reverse"])
def test_rounded_logits_err_as_those_of_a_bfloat16_head_do(name):
    """The error that docs/performance.md weighs against twice the bytes: of full logits in bfloat16, and not more."""
    case = make(n=64, k=1, v=300, dtype=torch.bfloat16, seed=24, bias=False)
    case.weights.fill_(1 / 64)
    spec = replace(SPECS[name], temperature=1.0)
    (want,) = torch.autograd.grad(case.expected(spec)[0], [case.hidden])
    (got,) = torch.autograd.grad(case.run(spec)[0], [case.hidden])

    def error(gradient):
        return ((gradient.double() - want.double()).norm() / want.double().norm()).item()

    full = error(full_logits(case, spec.divergence, rounded=True))
    assert 0.8 * full < error(got) < 1.25 * full
    assert error(full_logits(case, spec.divergence, rounded=False)) < 0.5 * full


def full_logits(case, divergence: str, rounded: bool) -> torch.Tensor:
    """Gradient of the mean KL on the hidden states from all logits at once, which are rounded to bfloat16 or not."""
    hidden, weight = case.hidden.detach().float().requires_grad_(), case.weight.detach().float()
    student, teacher = hidden @ weight.T, case.teacher_hidden[0].float() @ case.teacher_weight.float().T
    if rounded:
        student, teacher = student.bfloat16().float(), teacher.bfloat16().float()
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    first, second = (log_p, log_q) if divergence == "forward_kl" else (log_q, log_p)
    loss = torch.nn.functional.kl_div(first, second, reduction="sum", log_target=True) / 64
    return torch.autograd.grad(loss, hidden)[0].bfloat16()
