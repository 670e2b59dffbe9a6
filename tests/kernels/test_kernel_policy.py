# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The policy loss that `trl_opsd.kernels` trains in the same pass, and label scores, against the reference.

Legend: N tokens, the first M of them distilled, V vocabulary, K views.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import reference
from kernel_cases import DOUBLE, SINGLE, SPECS, TRANSFORMS, V, check, close, drawn, every_transform, make, tiles_of
from pairwise import pairwise
from trl_opsd.kernels import Head, PolicyTerm, chunks, label_scores
from trl_opsd.losses.divergences import LOG_ZERO


def grpo(n: int, seed: int = 30) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A clipped ratio, an estimate of the KL to a reference model and an entropy bonus."""
    old, reference_logps, advantages = drawn(torch.randn, 3, n, seed=seed)
    old, reference_logps = old - 2.5, reference_logps - 2.5

    def loss(logps: torch.Tensor, entropies: torch.Tensor) -> torch.Tensor:
        ratio = (logps - old.to(logps.dtype)).exp()
        clipped = ratio.clamp(0.8, 1.2)
        surrogate = torch.minimum(ratio * advantages.to(logps.dtype), clipped * advantages.to(logps.dtype))
        gap = reference_logps.to(logps.dtype) - logps
        return (-surrogate + 0.1 * (gap.exp() - gap - 1) - 0.05 * entropies * entropies).mean()

    return loss


LOSSES = {
    "grpo": lambda n: grpo(n),
    "logps": lambda n: lambda logps, entropies: (logps * torch.arange(n)).sum(),
    "entropies": lambda n: lambda logps, entropies: (entropies**2).sum(),
    "product": lambda n: lambda logps, entropies: (logps * entropies.flip(0)).sum(),
    "neither": lambda n: lambda logps, entropies: logps.new_tensor(1.5),
}


def make_policy(n=10, m=6, temperature=1.3, loss="grpo", **other):
    return make(n=n, m=m, policy=PolicyTerm(LOSSES[loss](n), temperature), **other)


@pytest.mark.parametrize(
    ("name", "transform", "m", "chunk_size"),
    pairwise(name=list(SPECS), transform=TRANSFORMS, m=[10, 6, 0], chunk_size=[None, 3, 4]),
)
def test_against_reference(name, transform, m, chunk_size):
    check(make_policy(m=m, transform=transform, chunk_size=chunk_size), SPECS[name])


@pytest.mark.parametrize(("name", "m", "chunk_size"), pairwise(name=list(SPECS), m=[10, 6, 0], chunk_size=[None, 4]))
def test_float32(name, m, chunk_size):
    case = make_policy(m=m, dtype=torch.float32, seed=1, transform={"softcap": 2.0}, chunk_size=chunk_size)
    assert case.run(SPECS[name])[0].dtype == torch.float32
    check(case, SPECS[name], **SINGLE)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_losses(loss, temperature, chunk_size):
    for factor in (1.0, -0.3):
        case = make_policy(temperature=temperature, loss=loss, chunk_size=chunk_size, seed=2)
        check(case, SPECS["reverse"], factor=factor)


@pytest.mark.parametrize("tile", [1, 3, 4, 99])
@pytest.mark.parametrize("chunk_size", [1, 4, 7, None])
def test_chunks_and_tiles(tile, chunk_size, monkeypatch):
    tiles_of(monkeypatch, tile)
    for m in (0, 1, 6, 10):
        check(make_policy(m=m, chunk_size=chunk_size, seed=3), SPECS["jsd"])


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_gradcheck(chunk_size):
    case = make_policy(n=5, m=2, v=6, seed=4, chunk_size=chunk_size, transform={"softcap": 2.0})

    def function(hidden, weight, bias):
        return replace(case, hidden=hidden, weight=weight, bias=bias).run(SPECS["tail"])[0] * 1.7

    assert torch.autograd.gradcheck(function, case.leaves())


@pytest.mark.parametrize("m", [10, 6, 0])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_is_the_sum_of_both(m, chunk_size):
    # In float64 the chunks of both ways differ, and so do the last digits
    case, spec = make_policy(m=m, chunk_size=chunk_size, seed=5), SPECS["skew"]
    loss, stats = case.run(spec)
    rest, rest_stats = replace(case, policy=None).run(spec)
    close(stats.values(), rest_stats.values())
    zero = replace(case, weights=torch.zeros_like(case.weights))
    alone, alone_stats = zero.run(spec)
    close(alone_stats.values(), rest_stats.values())
    torch.testing.assert_close(loss, rest + alone, **DOUBLE)
    sums = (a + b for a, b in zip(replace(case, policy=None).gradients(spec), zero.gradients(spec), strict=True))
    close(torch.autograd.grad(loss, case.leaves()), sums)
    check(zero, spec)


@pytest.mark.parametrize("m", [10, 6, 0])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_no_grad(m, chunk_size):
    case, asked = make_policy(m=m, chunk_size=chunk_size, seed=6), []
    inner = case.policy.loss
    case.policy.loss = lambda *values: asked.append([value.requires_grad for value in values]) or inner(*values)
    want, want_stats = case.run(SPECS["forward"])
    with torch.no_grad():
        loss, stats = case.run(SPECS["forward"])
    assert not loss.requires_grad
    close([loss, *stats.values()], [want.detach(), *want_stats.values()], rtol=0, atol=0)
    assert asked == [[True, True], [False, False]]  # once each


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("weight",), ("bias",), ("hidden",), ("hidden", "weight")])
def test_frozen_parts(frozen):
    for m, chunk_size in ((6, 4), (10, None), (0, None)):
        case = make_policy(m=m, chunk_size=chunk_size, seed=7)
        for part in frozen:
            getattr(case, part).requires_grad_(False)
        check(case, SPECS["jsd"])


def test_infinite_bias():
    case = make_policy(m=6, seed=8)
    with torch.no_grad():
        case.bias[-2:] = case.teacher_bias[-2:] = -torch.inf
    case.labels = case.labels % (V - 2)
    for chunk_size in (None, 4):
        check(replace(case, chunk_size=chunk_size), SPECS["reverse"])


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(chunk_size, use_reentrant):
    case = make_policy(seed=9, chunk_size=chunk_size)

    def inside(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return replace(case, hidden=hidden * 2, weight=weight, bias=bias).run(SPECS["jsd"])[0]

    loss = checkpoint(inside, *case.leaves(), use_reentrant=use_reentrant)
    loss.backward()
    for leaf, gradient in zip(case.leaves(), torch.autograd.grad(inside(*case.leaves()), case.leaves()), strict=True):
        assert torch.equal(leaf.grad, gradient)


def test_backward_again():
    case = make_policy(seed=10)
    loss = case.run(SPECS["jsd"])[0]
    once = torch.autograd.grad(loss, case.leaves(), retain_graph=True)
    twice = torch.autograd.grad(2 * loss, case.leaves())
    close(twice, (2 * first for first in once))


@pytest.mark.parametrize(("n", "m"), [(0, 0), (1, 1), (1, 0)])
def test_few_tokens(n, m):
    case = make_policy(n=n, m=m, loss="product", seed=11)
    check(case, SPECS["forward"])
    if n == 0:
        assert all((gradient == 0).all() for gradient in case.gradients(SPECS["forward"]))


@pytest.mark.parametrize(("chunk_size", "products"), [(None, 1), (4, 2)])
def test_logits_are_kept_where_they_are_one_chunk(chunk_size, products, monkeypatch):
    case, rows, inner = make_policy(m=6, k=1, seed=12, chunk_size=chunk_size), [], Head.project

    def project(self, hidden, *out):
        rows.append(len(hidden) if hidden.shape[1] == case.hidden.shape[1] else 0)
        return inner(self, hidden, *out)

    monkeypatch.setattr(Head, "project", project)
    case.run(SPECS["forward"])
    assert sum(rows) == products * 10


@every_transform
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_label_scores(transform, dtype, monkeypatch):
    case = make(n=30, dtype=dtype, seed=13, transform=transform)
    with torch.no_grad():
        case.bias[2] = -torch.inf
    head = case.head().prepared(case.hidden)
    got = label_scores(head, case.hidden, case.labels, 0.7)
    assert not any(value.requires_grad for value in got)
    logits = reference.head_logits(case.hidden, case.weight, case.bias, **({"scale": 1, "softcap": None} | transform))
    want = []
    reference.policy_loss(logits, case.labels, lambda *values: want.extend(values) or logits.sum(), 0.7)
    tolerance = {torch.float64: DOUBLE, torch.float32: SINGLE}.get(dtype, {"rtol": 0.05, "atol": 0.05})
    for one, value in zip(got, want, strict=True):
        assert one.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(one.double(), value.detach(), **tolerance)
    if "softcap" not in transform:
        assert (got[0] == -torch.inf).equal(case.labels == 2) and (case.labels == 2).any()
    # Cut in chunks and tiles
    for limit in ("_CPU_TOKENS", "_TOKENS"):
        monkeypatch.setattr(chunks, limit, 7)
    tiles_of(monkeypatch, 2)
    again = DOUBLE if dtype == torch.float64 else SINGLE
    close(label_scores(head, case.hidden, case.labels, 0.7), got, **again)
    empty = label_scores(head, case.hidden[:0], case.labels[:0], 0.7)
    assert [value.shape for value in empty] == [(0,), (0,)]


def test_a_label_that_the_student_rules_out():
    # Its log-probability is -inf for the policy too, as from full logits
    case, seen = make_policy(n=4, m=2, loss="neither", seed=14), []
    case.policy.loss = lambda logps, entropies: seen.append(logps.detach()) or entropies.sum()
    with torch.no_grad():
        case.bias[3] = -torch.inf
    case.labels[3] = 3
    check(case, SPECS["jsd"])
    assert seen[0][3] == -torch.inf and seen[0].min() < LOG_ZERO and seen[0][:3].isfinite().all()
