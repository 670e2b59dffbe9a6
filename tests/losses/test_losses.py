# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`trl_opsd.losses` against the dense reference of `reference.py`. Legend: N tokens, V vocabulary, K views."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from loss_cases import (
    CLIPS,
    ENTRY_CLIPS,
    KINDS,
    SUPPORTS,
    TOKEN_CLIPS,
    check,
    corners,
    every_corner,
    every_entry_clip,
    every_kind,
    library,
    make_spec,
    random_logits,
    tolerance_of,
)
from trl_opsd.losses import (
    DIVERGENCES,
    DivergenceSpec,
    Pair,
    forward_kl,
    generalized_jsd,
    one_target,
    reverse_kl,
    skew_kl,
    token_loss,
)
from trl_opsd.losses.divergences import LOG_ZERO, logit_gradient


@pytest.mark.parametrize(
    ("kind", "support", "entry_clip", "token_clip", "temperature"),
    corners(entry_clip=list(ENTRY_CLIPS), token_clip=list(TOKEN_CLIPS), temperature=[0.7, 0.5, 1.0, 3.0]),
)
def test_values_and_gradients(kind, support, entry_clip, token_clip, temperature):
    check(*random_logits(), make_spec(kind, support, entry_clip, token_clip, temperature=temperature))


@pytest.mark.parametrize(
    ("kind", "support", "entry_clip", "token_clip"),
    corners(entry_clip=list(ENTRY_CLIPS), token_clip=list(TOKEN_CLIPS)),
)
def test_float32(kind, support, entry_clip, token_clip):
    student, teacher = (logits.float() for logits in random_logits(v=40, seed=2))
    spec = make_spec(kind, support, entry_clip, token_clip)
    got = library(student, teacher, spec)
    assert got.loss.dtype == got.gradient.dtype == torch.float32
    check(student, teacher, spec, **tolerance_of(torch.float32))


def test_clips_of_these_tests_bind_some_tokens_and_not_others():
    # Or else the comparisons above would compare nothing
    student, teacher = random_logits()
    for kind in KINDS:
        for support in ("full", "student", "student-tail", "teacher-tail", "union", "union-tail"):
            for mode in ("signed", "non_negative"):
                clipped = library(student, teacher, make_spec(kind, support, mode)).stats["clipped"]
                assert (clipped == 0).any() and ((clipped > 0) & (clipped < 1)).any()
            clipped = library(student, teacher, make_spec(kind, support, "", "clip")).stats["clipped"]
            assert set(clipped.tolist()) == {0.0, 1.0}


def test_divergences_by_name():
    log_p, log_q = (logits.log_softmax(-1) for logits in random_logits())
    pair = Pair.of(log_p, log_q)
    p, q = log_p.exp(), log_q.exp()
    kl_qp, kl_pq = (q * (q / p).log()).sum(-1), (p * (p / q).log()).sum(-1)
    m = 0.7 * p + 0.3 * q
    skew = (q * (q / m).log()).sum(-1)
    jsd = 0.3 * skew + 0.7 * (p * (p / m).log()).sum(-1)
    for name, alpha, function, want in (
        ("forward_kl", 0.0, forward_kl, kl_qp),
        ("reverse_kl", 0.0, reverse_kl, kl_pq),
        ("jsd", 0.3, generalized_jsd, jsd),
        ("skew_kl", 0.3, skew_kl, skew),
    ):
        torch.testing.assert_close(function(pair, alpha).entries.sum(-1), want)
        torch.testing.assert_close(token_loss(pair, DivergenceSpec(name, alpha)).loss, want)
    # As TRL names them, by alpha alone
    for alpha, want in ((0.0, kl_qp), (1.0, kl_pq), (0.3, jsd)):
        torch.testing.assert_close(token_loss(pair, DivergenceSpec(alpha=alpha)).loss, want)


@every_kind
def test_terms(kind):
    # What the documentation of `Terms` promises, by autograd over unnormalised probabilities
    options = {"alpha": 0.0} | KINDS[kind]
    log_p, log_q = (logits.log_softmax(-1) for logits in random_logits(seed=21))
    pair, alpha = Pair.of(log_p, log_q), options["alpha"]
    terms = DIVERGENCES[options["divergence"]].terms(pair, alpha)
    non_negative = terms.entries + terms.shift * (pair.p - pair.q)
    assert (non_negative >= -1e-15).all()
    torch.testing.assert_close(non_negative.sum(-1), terms.entries.sum(-1))
    p, q = pair.p.clone().requires_grad_(), pair.q
    m = (1 - alpha) * p + alpha * q
    divergence = {
        "forward_kl": q * (q / p).log(),
        "reverse_kl": p * (p / q).log(),
        "jsd": alpha * q * (q / m).log() + (1 - alpha) * p * (p / m).log(),
        "skew_kl": q * (q / m).log(),
    }[options["divergence"]]
    (want,) = torch.autograd.grad(divergence.sum(), p)
    # Slopes without their shift are p dD/dp
    torch.testing.assert_close(terms.slopes - terms.shift * pair.p, pair.p * want)
    gradient = logit_gradient(terms.slopes, pair.p)
    torch.testing.assert_close(gradient, pair.p * (want - (pair.p * want).sum(-1, keepdim=True)))


@pytest.mark.parametrize(
    ("name", "alpha", "factor", "limit"),
    [("jsd", 1e-6, 1e6, "forward_kl"), ("jsd", 1 - 1e-6, 1e6, "reverse_kl"), ("skew_kl", 1e-6, 1.0, "forward_kl")],
)
def test_mixtures_tend_to_the_kls(name, alpha, factor, limit):
    # jsd: alpha -> 0: D / alpha -> KL(q||p); alpha -> 1: D / (1 - alpha) -> KL(p||q)
    student, teacher = random_logits(seed=3)
    near = library(student, teacher, DivergenceSpec(name, alpha))
    far = library(student, teacher, DivergenceSpec(limit))
    torch.testing.assert_close(near.loss * factor, far.loss, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(near.gradient * factor, far.gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "support", "absent", "entry_clip", "token_clip"),
    corners(
        absent=["student", "teacher", "both"],
        entry_clip=list(ENTRY_CLIPS),
        token_clip=list(TOKEN_CLIPS),
    ),
)
def test_infinite_logits(kind, support, absent, entry_clip, token_clip):
    student, teacher = random_logits(seed=4)
    if absent in ("student", "both"):
        student[::2, 0] = student[1, 5] = -torch.inf
    if absent in ("teacher", "both"):
        teacher[::2, 0] = teacher[1, 5] = -torch.inf
    spec = make_spec(kind, support, entry_clip, token_clip)
    check(student, teacher, spec)
    got = library(student, teacher, spec)
    assert got.gradient.isfinite().all()  # also beside an infinite loss, for a weight of 0 to make it 0
    if absent == "both":
        assert got.loss.isfinite().all()


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("nats", [1.0, 30.0, 60.0])
def test_an_infinite_divergence_by_an_unlikely_token(kind, nats):
    # Ruled out by the one, and of probability exp(-nats) for the other
    student, teacher = torch.zeros(2, 4), torch.zeros(2, 4)
    out, rare = (student, teacher) if kind == "forward_kl" else (teacher, student)
    out[0, 0], rare[0, 0] = -torch.inf, -nats
    got = library(student, teacher, make_spec(kind))
    assert got.loss.tolist() == got.stats["divergence"].tolist() == [torch.inf, 0.0]


@every_kind
@every_entry_clip
@pytest.mark.parametrize("absent", ["student", "teacher"])
def test_token_clip_bounds_an_infinite_divergence(kind, entry_clip, absent):
    student, teacher = random_logits(seed=4)
    (student if absent == "student" else teacher)[::2, 0] = -torch.inf
    got = library(student, teacher, make_spec(kind, "full", entry_clip, "clip"))
    assert (got.loss <= 0.1).all()
    assert got.gradient.isfinite().all()


@every_kind
@every_entry_clip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_that_underflow(kind, entry_clip, dtype):
    # exp is 0 where the logarithm is finite still, and so is the divergence
    low = -300.0 if dtype == torch.float32 else -1500.0
    student, teacher = (logits.to(dtype) for logits in random_logits(seed=5))
    student[0, 0] = low
    teacher[1, 0] = low
    student[2, 0], teacher[2, 0] = low, 1.1 * low
    student[3, 1:], teacher[4, 1:] = low, low
    student[5, 1:], teacher[5, :-1] = low, low
    spec = make_spec(kind, "full", entry_clip)
    got = library(student, teacher, spec)
    assert got.loss.isfinite().all() and got.gradient.isfinite().all()
    check(student, teacher, spec, **tolerance_of(dtype))


@every_kind
def test_subnormal_probabilities(kind):
    # Between the least float32, 1.4e-45 = exp(-103.3), and 0
    student = torch.zeros(40, 5)
    teacher = torch.zeros(40, 5)
    teacher[:20, 0] = torch.linspace(-104.5, -86.0, 20)
    student[:20, 0] = -300.0
    student[20:, 0] = torch.linspace(-104.5, -86.0, 20)
    teacher[20:, 0] = -300.0
    check(student, teacher, make_spec(kind), **tolerance_of(torch.float32))


@every_kind
def test_two_tokens(kind):
    student, teacher = random_logits(v=2, seed=7)
    for entry_clip, token_clip in CLIPS:
        for options in ({}, {"topk": 1, "add_tail": True}, {"topk": 2}, {"topk": 1, "topk_source": "union"}):
            check(student, teacher, make_spec(kind, "full", entry_clip, token_clip, **options))


@every_corner
def test_sign_of_the_clipped_loss(kind, support):
    student, teacher = random_logits(n=200, seed=11)
    for clip in (1e-9, 1e-3, 0.05):
        signed, non_negative = (
            library(student, teacher, replace(make_spec(kind, support, mode), entry_clip=clip))
            for mode in ("signed", "non_negative")
        )
        assert (non_negative.loss >= 0).all()
        assert (non_negative.loss <= non_negative.stats["divergence"] + 1e-12).all()
        if not kind.startswith("jsd"):
            assert (signed.loss < 0).any()
        else:  # entries of the Jensen-Shannon divergence are non-negative as they are
            assert (signed.loss >= 0).all()
            torch.testing.assert_close(signed.loss, non_negative.loss, rtol=0, atol=0)


@every_corner
def test_clips_that_do_not_bind_change_nothing(kind, support):
    student, teacher = random_logits(seed=12)
    plain = library(student, teacher, make_spec(kind, support))
    for mode in ("signed", "non_negative"):
        loose = replace(make_spec(kind, support, mode, "clip"), entry_clip=1e3, token_clip=1e3)
        got = library(student, teacher, loose)
        torch.testing.assert_close(got.loss, plain.loss)
        torch.testing.assert_close(got.gradient, plain.gradient)
        assert (got.stats["clipped"] == 0).all()


@every_corner
def test_token_clip(kind, support):
    student, teacher = random_logits(seed=13)
    plain = library(student, teacher, make_spec(kind, support))
    spec = make_spec(kind, support, "", "clip")
    got, over = library(student, teacher, spec), plain.loss > spec.token_clip
    assert over.any() and not over.all()
    assert (got.loss[over] == spec.token_clip).all()
    torch.testing.assert_close(got.stats["divergence"], plain.stats["divergence"], rtol=0, atol=0)
    torch.testing.assert_close(got.gradient[~over], plain.gradient[~over], rtol=0, atol=0)
    assert (got.gradient[over] == 0).all()


@pytest.mark.parametrize(("kind", "support", "temperature"), corners(temperature=[1.0, 0.6]))
def test_agreement_gives_exact_zeros(kind, support, temperature):
    generator = torch.Generator().manual_seed(14)
    logits = torch.randn(8, 1000, generator=generator) * torch.tensor([0.1, 1, 2, 4, 8, 16, 64, 256]).unsqueeze(1)
    logits[0, 3] = logits[1, 7] = -torch.inf
    log_p = (logits / temperature).log_softmax(-1)
    pair = Pair.of(log_p, log_p.clone())
    renormalised = not SUPPORTS[support].get("add_tail") and "union" not in support
    sizes = (2 if renormalised else 1, 20, 999, 1000) if SUPPORTS[support] else (None,)
    for (entry_clip, token_clip), topk in product(CLIPS, sizes):
        result = token_loss(pair, make_spec(kind, support, entry_clip, token_clip, topk=topk))
        assert (result.stats["divergence"] == 0).all()
        assert (result.loss == 0).all()
        assert (result.gradient == 0).all()
        assert (result.stats["clipped"] == 0).all()


@pytest.mark.parametrize("target", ["arithmetic", "geometric"])
def test_one_target(target):
    log_qs = [logits.log_softmax(-1) for logits in (*random_logits(seed=15), *random_logits(seed=16))]
    shares = torch.rand(4, 12, generator=torch.Generator().manual_seed(17), dtype=torch.float64)
    shares[0, 1::3] = shares[2, 2::3] = 0
    shares = shares / shares.sum(0)
    log_qs[2][2::3, 0] = -torch.inf  # of a view without share
    log_q, q = one_target(torch.zeros(12, 8), [view.clamp(min=LOG_ZERO) for view in log_qs], shares, target)
    torch.testing.assert_close(q.sum(-1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(log_q.exp(), q)
    weighted = [share.unsqueeze(-1) * view.exp() for share, view in zip(shares, log_qs, strict=True)]
    if target == "geometric":
        powers = [view.exp() ** share.unsqueeze(-1) for share, view in zip(shares, log_qs, strict=True)]
        product = powers[0] * powers[1] * powers[2] * powers[3]
        weighted = [product / product.sum(-1, keepdim=True)]
    torch.testing.assert_close(q, sum(weighted))


@pytest.mark.parametrize("target", ["arithmetic", "geometric"])
def test_one_target_of_extremes(target):
    # Ruled out by both, by one, and so unlikely to both that the probability underflows
    log_qs = [torch.tensor([[LOG_ZERO, LOG_ZERO, -200.0, 0.0]]), torch.tensor([[LOG_ZERO, -1.0, -150.0, 0.0]])]
    log_q, q = one_target(torch.zeros(1, 4), log_qs, torch.full((2, 1), 0.5), target)
    assert log_q[0, 0] <= 0.1 * LOG_ZERO and log_q.isfinite().all() and q.isfinite().all()
    if target == "geometric":
        assert log_q[0, 1] <= 0.1 * LOG_ZERO
        torch.testing.assert_close(log_q[0, 2:], torch.tensor([-175.0, 0.0]))
    else:
        want = torch.tensor([-1.0, -150.0, 0.0]) + torch.tensor([0.5, 0.5, 1.0]).log()
        torch.testing.assert_close(log_q[0, 1:], want)
        # One view is the target itself, without rounding
        assert torch.equal(one_target(torch.zeros(1, 4), log_qs[1:], torch.ones(1, 1), target)[0], log_qs[1])


def test_the_entry_clip_pushes_away_from_the_entries_that_it_clips():
    """
    The gradient of the clipped sum on logit i is Q_A p_i - q_i where entry i is not clipped and Q_A p_i where it is,
    with Q_A the teacher's mass on entries that are not (2609.38995): there the student's p < q is lowered still.
    """
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(64, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    logits = student.clone().requires_grad_()
    p, q = logits.softmax(-1), teacher.softmax(-1)
    entries = q * (q / p).log()
    entries.clamp(max=0.05).sum().backward()
    clipped = entries > 0.05
    mass = (q * ~clipped).sum(-1, keepdim=True)
    identity = mass * p - torch.where(clipped, 0.0, q)
    torch.testing.assert_close(logits.grad, identity.detach())
    pair = Pair.of(student.log_softmax(-1), teacher.log_softmax(-1))
    got = token_loss(pair, DivergenceSpec(entry_clip=0.05))
    torch.testing.assert_close(got.gradient, identity.detach())
    torch.testing.assert_close(1 - got.stats["clipped"], mass.squeeze(-1).detach())
    assert clipped.any(-1).all() and (got.gradient[clipped] > 0).all() and (q[clipped] > p[clipped]).all()
    plain = token_loss(pair, DivergenceSpec())
    assert (plain.gradient[clipped] < 0).all(), "without the clip they are raised"
