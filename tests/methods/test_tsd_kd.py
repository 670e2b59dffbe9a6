# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""TSD-KD: entropy-difference weights, the ranking of candidates, the entropy term."""

import itertools
import math

import pytest
import torch

from method_cases import CLOSE, N, check_loss, random
from trl_opsd import OPSDConfig
from trl_opsd.kernels import Head, LinearDivergenceInputs, linear_divergence
from trl_opsd.methods.papers.tsd_kd import cumulative_share, entropy, plackett_luce
from trl_opsd.methods.runtime import MethodRun


def entropy_of(log_p):
    return -(log_p.exp() * log_p).sum(-1)


def jsd(log_p, log_q, beta=0.9):
    log_m = ((1 - beta) * log_p.exp() + beta * log_q.exp()).log()
    return (beta * log_q.exp() * (log_q - log_m) + (1 - beta) * log_p.exp() * (log_p - log_m)).sum(-1)


def ranking(log_p, log_q, candidates):
    """Each candidate in the teacher's order against those that are left."""
    losses = []
    for p, q in zip(log_p, log_q, strict=True):
        chosen = p.topk(candidates).indices.tolist()
        order = sorted(chosen, key=lambda v: -q[v].item())
        losses.append(sum(p[order[i:]].logsumexp(0) - p[order[i]] for i in range(candidates)))
    return torch.stack(losses)


def direct(log_p, log_q):
    return torch.sigmoid(entropy_of(log_p) - entropy_of(log_q)).detach() * jsd(log_p, log_q)


def parts(log_p, log_q, candidates=5, least=0.1, early=0.1):
    """
    The three parts, each with the mean over the tokens of its own, 0 of none; rows are of three tokens. As in the
    published code, the token with which a row's cumulative entropy reaches the share `early` is not early any more.
    """
    unsure = entropy_of(log_p).detach()
    place = least * (N - 1)
    ordered = unsure.sort().values
    low = ordered[math.floor(place)] + (place % 1) * (ordered[math.ceil(place)] - ordered[math.floor(place)])
    kept = unsure >= low
    begun = torch.zeros(N, dtype=torch.bool)
    for row in range(N // 3):
        for i in range(3):
            spent = unsure[3 * row : 3 * row + i + 1].sum() / unsure[3 * row : 3 * row + 3].sum()
            begun[3 * row + i] = spent < early
    rank = ranking(log_p, log_q, candidates) * begun
    return direct(log_p, log_q).mean(), entropy_of(log_p)[kept].mean(), rank.sum() / begun.sum().clamp(min=1)


@pytest.mark.parametrize(("least", "early"), [(0.1, 0.1), (0.5, 0.5), (0.5, 0.9)])
def test_loss(least, early):
    def formula(log_p, log_qs, labels):
        kl, sharp, rank = parts(log_p, log_qs[0], least=least, early=early)
        return kl + 0.7 * sharp + 0.2 * rank

    options = {"candidates": 5, "least": least, "early": early, "entropy": 0.7, "ranking": 0.2}
    check_loss("tsd_kd", ["privileged"], formula, method_options=options)


def test_the_direct_part_alone():
    off = {"entropy": 0.0, "ranking": 0.0}
    check_loss("tsd_kd", ["a"], lambda log_p, log_qs, _: direct(log_p, log_qs[0]), method_options=off)


def test_the_list_loss_is_a_probability():
    """Over all orders of the candidates the likelihoods of Plackett and Luce sum to 1."""
    log_p = torch.randn(1, 4, generator=random(0), dtype=torch.float64).log_softmax(-1)
    orders = [torch.tensor([order], dtype=torch.float64) for order in itertools.permutations(range(4))]
    total = sum((-plackett_luce(log_p, order, 4)[0]).exp().item() for order in orders)
    assert total == pytest.approx(1.0)


def test_gradients_of_the_terms():
    draw = random(1)
    z = torch.randn(7, 12, generator=draw, dtype=torch.float64).requires_grad_()
    log_q = torch.randn(7, 12, generator=draw, dtype=torch.float64).log_softmax(-1)
    log_p = z.log_softmax(-1)
    fixed = log_p.detach()
    for wanted, (loss, got) in (
        (entropy_of(log_p), entropy(fixed, fixed.exp())),
        (ranking(log_p, log_q, 5), plackett_luce(fixed, log_q, 5)),
    ):
        torch.testing.assert_close(loss, wanted.detach(), **CLOSE)
        torch.testing.assert_close(got, torch.autograd.grad(wanted.sum(), z, retain_graph=True)[0], **CLOSE)


def test_a_student_in_the_teachers_order_has_the_least_loss():
    """Of two teachers, the one that agrees about the order costs less."""
    log_p = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
    alike, reversed_order = plackett_luce(log_p, log_p, 3)[0], plackett_luce(log_p, -log_p, 3)[0]
    assert alike < reversed_order


def test_shares_up_to_a_token():
    values, rows = torch.tensor([1.0, 3.0, 2.0, 2.0, 4.0]), torch.tensor([0, 0, 3, 3, 3])
    assert cumulative_share(values, rows).tolist() == [0.25, 1.0, 0.25, 0.5, 1.0]
    assert cumulative_share(values[:0], rows[:0]).shape == (0,)


def test_identical_contexts_leave_the_entropy_term():
    """The divergence is 0, and the student is sharpened all the same: this is more than distillation."""
    config = OPSDConfig("unused", method="tsd_kd", bf16=False, num_generations=2)
    spec = MethodRun("tsd_kd", {"ranking": 0.0, "least": 0.0}).spec(config.divergence_spec, ["privileged"])
    hidden = torch.randn(6, 3, generator=random(2), dtype=torch.float64)
    head = Head(torch.randn(9, 3, generator=random(3), dtype=torch.float64))
    task = LinearDivergenceInputs(
        head=head, teacher_hidden=hidden[None], teacher_heads=[head], labels=torch.arange(6), spec=spec,
        weights=torch.full((1, 6), 1 / 6, dtype=torch.float64), relative_positions=torch.zeros(6),
        rows=torch.zeros(6).long(),
    )  # fmt: skip
    loss, _ = linear_divergence(hidden, task)
    torch.testing.assert_close(loss, entropy_of((hidden @ head.weight.T).log_softmax(-1)).mean(), **CLOSE)
