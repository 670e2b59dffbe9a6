# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
`trl_opsd.kernels.linear_divergence` against the dense reference of `reference.py`.

Legend: N tokens, H hidden size of the student, V vocabulary, K views.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import reference
from kernel_cases import (
    DOUBLE,
    SINGLE,
    SPECS,
    TARGETS,
    H,
    V,
    check,
    close,
    every_spec,
    every_transform,
    make,
    tiles_of,
)
from pairwise import pairwise
from trl_opsd.kernels import Head, forward_pass, linear_divergence


@every_spec
@every_transform
def test_against_reference(name, transform):
    check(make(transform=transform, teacher_transform={"scale": 1.2, "softcap": 3.0}), SPECS[name])


def test_clips_of_these_tests_bind_some_tokens_and_not_others():
    for name in ("entry-clip", "non-negative"):
        clipped = make().run(SPECS[name])[1]["clipped"]
        assert ((clipped > 0) & (clipped < 1)).all()
    for name in ("hard", "clipped-jsd"):
        assert set(make().run(SPECS[name])[1]["clipped"].flatten().tolist()) == {0.0, 1.0}
    ratio = (make().run(SPECS["is-clip"])[1]["student_logps"] - make().old_logps).exp()
    assert (ratio < 1.2).any() and (ratio > 1.2).any()


@pytest.mark.parametrize(("name", "k", "bias"), pairwise(name=list(SPECS), k=[1, 2, 3], bias=[True, False]))
def test_float32(name, k, bias):
    case = make(k=k, dtype=torch.float32, bias=bias, seed=1, transform={"softcap": 2.0, "scale": 0.7})
    loss, stats = case.run(SPECS[name])
    assert {loss.dtype} | {value.dtype for value in stats.values()} == {torch.float32}
    check(case, SPECS[name], **SINGLE)


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ("is-clip", "stop-gradient")])
@every_transform
def test_gradcheck(name, transform):
    # But for those left out, which hold a factor constant
    case = make(n=3, k=2, seed=2, v=5, transform=transform)
    case.weights = torch.tensor([[0.7, 0.0, 1.3], [0.2, 0.0, 0.0]], dtype=torch.float64)
    spec = replace(SPECS[name], is_clip=None)

    def function(hidden, weight, bias):
        return replace(case, hidden=hidden, weight=weight, bias=bias).run(spec)[0] * 1.7

    assert torch.autograd.gradcheck(function, case.leaves())


@pytest.mark.parametrize("name", ["is-clip", "union-tail", "geometric"])  # one and several targets, all statistics
@pytest.mark.parametrize(
    ("tokens", "tile", "sizes"),
    [
        (1, 5, [1] * 10),
        (3, 3, [3, 3, 3, 1]),
        (4, 3, [3, 1, 3, 1, 2]),
        (7, 2, [2, 2, 1, 2, 2, 1]),
        (9, 9, [5, 5]),
        (10, 4, [4, 4, 2]),
        (10, 1, [1] * 10),
        (50, 99, [10]),
    ],
)
def test_chunks_and_tiles(name, tokens, tile, sizes, monkeypatch):
    seen = tiles_of(monkeypatch, tile)
    check(make(seed=3, transform={"softcap": 2.0}, chunk_size=tokens), SPECS[name])
    targets = 1 if SPECS[name].target else 2
    assert seen == [size for size in sizes for _ in range(targets)]


@pytest.mark.parametrize(("name", "n", "k"), pairwise(name=list(SPECS), n=[0, 1], k=[1, 3]))
def test_few_tokens(name, n, k):
    case = make(n=n, k=k, seed=4)
    loss, stats = case.run(SPECS[name])
    assert stats["loss"].shape == (k, n) and stats["student_logps"].shape == (n,)
    if n == 0:
        assert loss == 0
        for leaf, gradient in zip(case.leaves(), torch.autograd.grad(loss, case.leaves()), strict=True):
            assert gradient.shape == leaf.shape and (gradient == 0).all()
    else:
        check(case, SPECS[name])


@pytest.mark.parametrize("name", [name for name in SPECS if SPECS[name].topk is None])
def test_vocabulary_of_two(name):
    check(make(v=2, seed=4, transform={"softcap": 2.0}), SPECS[name])
    check(make(v=2, seed=4), replace(SPECS[name], topk=1, topk_source="union", add_tail=True))


@pytest.mark.parametrize("name", [name for name in SPECS if name not in TARGETS])
def test_views_add_up(name):
    case = make(k=3, seed=5)
    loss, gradients = case.run(SPECS[name])[0], []
    total = torch.autograd.grad(loss, case.leaves())
    for view in range(3):
        own = {"teacher_hidden": case.teacher_hidden[[view]], "weights": case.weights[[view]]}
        one = replace(case, **own, names=case.names[view])
        part = one.run(SPECS[name])[0]
        loss = loss - part
        gradients.append(torch.autograd.grad(part, case.leaves()))
    torch.testing.assert_close(loss, torch.zeros_like(loss), **DOUBLE)
    close(total, (sum(parts) for parts in zip(*gradients, strict=True)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [name for name in SPECS if name not in (*TARGETS, "by-view")])
def test_one_target(name, target):
    spec = replace(SPECS[name], target=target)
    check(make(k=3, seed=5, chunk_size=4), spec)
    # Of one view, it is the view
    case = make(k=1, seed=5)
    (loss, stats), (want, want_stats) = case.run(spec), case.run(SPECS[name])
    close([loss, *stats.values()], [want, *want_stats.values()])
    close(torch.autograd.grad(loss, case.leaves()), torch.autograd.grad(want, case.leaves()))


@pytest.mark.parametrize("target", TARGETS)
def test_target_of_views_without_share(target):
    case, spec = make(k=3, seed=5), replace(SPECS["reverse"], target=target)
    case.weights[:, 0] = torch.tensor([0.0, 0.3, 0.0])
    case.weights[:, 3] = torch.tensor([0.2, 0.0, 0.6])
    check(case, spec)
    # What a view without share says does not matter, not even where it rules a token out
    other = replace(case, teacher_hidden=case.teacher_hidden.clone())
    other.teacher_hidden[0, 0] = other.teacher_hidden[1, 3] = 1e200 * case.teacher_hidden[0, 0]
    close(other.gradients(spec), case.gradients(spec))
    # Every view shows the one divergence, and what it says itself
    stats = case.run(spec)[1]
    assert torch.equal(stats["divergence"][0], stats["divergence"][2])
    assert not torch.equal(stats["teacher_entropy"][0], stats["teacher_entropy"][2])


@every_spec
def test_zero_weights(name):
    case = make(seed=6)
    case.weights.zero_()
    loss, stats = case.run(SPECS[name])
    assert loss == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, case.leaves()))
    # Recorded all the same
    assert (stats["divergence"] != 0).all() and stats["divergence"].isfinite().all()


def test_zero_weight_against_an_infinite_divergence():
    case = make(seed=6)
    # In the view that token 2 lacks, the teacher's logit of token 1 overflows to -inf
    case.teacher_weight = torch.cat([case.teacher_weight, torch.zeros(V, 1, dtype=torch.float64)], 1)
    case.teacher_weight[1, -1] = -1e308
    case.teacher_hidden = torch.cat([case.teacher_hidden, torch.zeros(2, 10, 1, dtype=torch.float64)], 2)
    want = case.run(SPECS["reverse"])[0]
    wants = torch.autograd.grad(want, case.leaves())
    case.teacher_hidden[1, 2, -1] = 100.0
    case.labels[2] = 1
    loss, stats = case.run(SPECS["reverse"])
    assert case.weights[1, 2] == 0
    assert stats["divergence"][1, 2] == torch.inf and stats["teacher_logps"][1, 2] == -torch.inf
    torch.testing.assert_close(loss, want)
    close(torch.autograd.grad(loss, case.leaves()), wants)


AGREE = [name for name, spec in SPECS.items() if not (spec.target or spec.teacher_temperature)]


@pytest.mark.parametrize("name", AGREE)
def test_agreement_gives_exact_zeros(name, monkeypatch):
    seen = tiles_of(monkeypatch, 3, 500)
    for dtype in (torch.float32, torch.bfloat16):
        case = make(dtype=dtype, seed=7, v=500, transform={"softcap": 5.0, "scale": 3.0}, chunk_size=4)
        case.teacher_hidden, case.teacher_weight = case.hidden.detach().expand(2, -1, -1).clone(), case.weight.detach()
        case.teacher_bias, case.teacher_transform = case.bias.detach(), case.transform
        loss, stats = case.run(SPECS[name])
        assert loss == 0 and (stats["divergence"] == 0).all()
        assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, case.leaves()))
    assert seen == [3, 3, 1, 1, 3, 3, 1, 1, 2, 2] * 2


@every_spec
def test_infinite_bias(name):
    # Padding of the vocabulary that both heads rule out
    case = make(seed=8)
    with torch.no_grad():
        case.bias[-2:] = case.teacher_bias[-2:] = -torch.inf
    assert (case.labels >= V - 2).any()  # whose log-probability is -inf, for a token that does not count
    case.weights[:, case.labels >= V - 2] = 0
    check(case, SPECS[name])


def test_importance_weight():
    spec = SPECS["is-clip"]
    case = make(seed=9, n=6, k=1)
    case.weights = torch.ones(1, 6, dtype=torch.float64)
    student = case.run(spec)[1]["student_logps"]
    # Far less likely now, less likely, as likely, a bit more likely, beyond the bound, far beyond it
    case.old_logps = student - torch.tensor([-1e3, -0.5, 0.0, 0.1, 0.3, 1e3], dtype=torch.float64)
    factor = torch.tensor([-20.0, -0.5, 0.0, 0.1, 0.0, 0.0], dtype=torch.float64).exp()
    factor[4:] = 1.2
    loss, stats = case.run(spec)
    torch.testing.assert_close(loss, (stats["loss"][0] * factor).sum(), **DOUBLE)
    plain = replace(case, weights=factor.unsqueeze(0), old_logps=None)
    for other in (spec, replace(spec, is_clip=None)):  # no gradient through the factor
        close(case.gradients(spec), plain.gradients(other))
    unused = replace(case, old_logps=None).run(spec)[0]
    torch.testing.assert_close(case.run(replace(spec, is_clip=None))[0], unused, rtol=0, atol=0)
    check(case, spec)
    # A sampler that could not say how likely a token was
    case.old_logps[:3] = torch.nan
    plain.weights[:, :3] = 1
    close([case.run(spec)[0], *case.gradients(spec)], [plain.run(spec)[0], *plain.gradients(spec)])


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("weight",), ("bias",), ("hidden",), ("hidden", "weight")])
def test_frozen_parts(frozen):
    case = make(seed=10, transform={"softcap": 2.0}, chunk_size=4)
    for part in frozen:
        getattr(case, part).requires_grad_(False)
    check(case, SPECS["jsd"])
    case.run(SPECS["jsd"])[0].backward()
    for part in ("hidden", "weight", "bias"):
        assert (getattr(case, part).grad is None) == (part in frozen)


def test_everything_frozen():
    case = make(seed=10)
    want = case.run(SPECS["jsd"])[0]
    for leaf in case.leaves():
        leaf.requires_grad_(False)
    loss = case.run(SPECS["jsd"])[0]
    assert not loss.requires_grad
    torch.testing.assert_close(loss, want, rtol=0, atol=0)


def test_teacher_gets_no_gradient():
    case = make(seed=10)
    for tensor in (case.teacher_hidden, case.teacher_weight, case.teacher_bias):
        tensor.requires_grad_()
    case.weights.requires_grad_()
    case.run(SPECS["forward"])[0].backward()
    assert case.hidden.grad is not None
    for tensor in (case.teacher_hidden, case.teacher_weight, case.teacher_bias, case.weights):
        assert tensor.grad is None


@every_spec
def test_used_twice_in_one_backward(name):
    case, other = make(seed=11), make(seed=12)
    other.weight, other.bias = case.weight, case.bias
    hidden, spec = case.hidden, SPECS[name]
    first, second = (replace(one, hidden=hidden * 1.0) for one in (case, other))  # one graph, one head, two calls
    leaves = [hidden, case.weight, case.bias]
    loss = first.run(spec)[0]
    got = torch.autograd.grad(loss + 2 * second.run(spec)[0] + 3 * loss, leaves, retain_graph=True)
    want = torch.autograd.grad(4 * first.expected(spec)[0] + 2 * second.expected(spec)[0], leaves)
    close(got, want)


def test_backward_again():
    case = make(seed=11)
    loss = case.run(SPECS["jsd"])[0]
    once = torch.autograd.grad(loss, case.leaves(), retain_graph=True)
    twice = torch.autograd.grad(2 * loss, case.leaves(), retain_graph=True)
    close(twice, (2 * first for first in once))
    # And into .grad, which may be the very tensor that backward returned
    for _ in range(3):
        loss.backward(retain_graph=True)
    close((leaf.grad for leaf in case.leaves()), (3 * first for first in case.gradients(SPECS["jsd"])))


@pytest.mark.parametrize("factor", [3.0, -0.25, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_incoming_gradient(factor, dtype):
    tolerance = DOUBLE if dtype == torch.float64 else SINGLE
    check(make(seed=13, dtype=dtype), SPECS["reverse"], factor=factor, **tolerance)


def test_gradient_flows_to_what_made_the_hidden_states():
    case = make(seed=14)
    leaf = torch.randn(10, 2 * H, dtype=torch.float64, requires_grad=True)
    case.hidden = (leaf * 2).tanh()[:, ::2]  # not contiguous
    (got,) = torch.autograd.grad(case.run(SPECS["forward"])[0], leaf, retain_graph=True)
    (want,) = torch.autograd.grad(case.expected(SPECS["forward"])[0], leaf)
    torch.testing.assert_close(got, want, **DOUBLE)


@every_spec
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(name, use_reentrant):
    case = make(seed=14, chunk_size=4)

    def inside(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return replace(case, hidden=hidden * 2, weight=weight, bias=bias).run(SPECS[name])[0]

    loss = checkpoint(inside, *case.leaves(), use_reentrant=use_reentrant)
    loss.backward()
    want = inside(*case.leaves())
    assert torch.equal(loss, want)
    for leaf, gradient in zip(case.leaves(), torch.autograd.grad(want, case.leaves()), strict=True):
        assert torch.equal(leaf.grad, gradient)


@every_spec
def test_no_grad(name, monkeypatch):
    case = make(seed=15)
    want, want_stats = case.run(SPECS[name])
    monkeypatch.setattr(forward_pass.GradAccumulator, "add", lambda *_: pytest.fail("a gradient that nobody asked for"))
    with torch.no_grad():
        loss, stats = case.run(SPECS[name])
    assert loss.grad_fn is None and not loss.requires_grad
    close([loss, *stats.values()], [want.detach(), *want_stats.values()], rtol=0, atol=0)


@every_transform
def test_head(transform):
    case = make(seed=22, transform=transform)
    head, hidden = case.head().prepared(case.hidden), case.hidden.detach()
    raw = head.project(hidden)
    torch.testing.assert_close(raw, hidden @ case.weight.detach().T + case.bias.detach(), **DOUBLE)
    memory = torch.full((12, V), torch.nan, dtype=torch.float64)
    assert torch.equal(head.project(hidden, memory), raw) and torch.equal(memory[:10], raw)
    assert memory.shape == (12, V) and memory[10:].isnan().all()
    options = {"scale": 1.0, "softcap": None} | transform
    want = reference.head_logits(case.hidden, case.weight, case.bias, **options)
    torch.testing.assert_close(head.transform(raw), want.detach(), **DOUBLE)
    assert head.transform(raw.bfloat16()).dtype == torch.float32
    upstream = torch.randn(10, V, dtype=torch.float64)
    leaf = raw.clone().requires_grad_()
    capped = leaf * options["scale"]
    capped = capped if options["softcap"] is None else options["softcap"] * (capped / options["softcap"]).tanh()
    (want,) = torch.autograd.grad((capped * upstream).sum(), leaf)
    torch.testing.assert_close(head.back_through_transform(upstream, raw), want, **DOUBLE)


@pytest.mark.parametrize("bias", [True, False])
def test_cut(bias):
    case = make(seed=23, bias=bias, transform={"scale": 0.5, "softcap": 2.0})
    head = case.head()
    assert head.cut(V) is head
    cut = head.cut(V - 3)
    assert (cut.scale, cut.softcap, cut.float32) == (0.5, 2.0, False)
    assert replace(head, float32=True).cut(V - 3).float32
    whole, part = (h.prepared(case.hidden).project(case.hidden.detach()) for h in (head, cut))
    torch.testing.assert_close(part, whole[:, : V - 3], **DOUBLE)
    # Gradients reach the rows that are left, and only those
    teacher = Head(case.teacher_weight, case.teacher_bias).cut(V - 3)
    task = replace(
        case.task(SPECS["forward"]), head=cut, teacher_heads=[teacher] * len(case.weights), labels=case.labels % (V - 3)
    )
    linear_divergence(case.hidden, task)[0].backward()
    for leaf in case.leaves()[1:]:
        assert (leaf.grad[V - 3 :] == 0).all() and (leaf.grad[: V - 3] != 0).all()
