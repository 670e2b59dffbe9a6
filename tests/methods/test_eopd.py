# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""EOPD: a clipped policy gradient of the sampled token, and a gated forward KL on the teacher's top-k."""

import pytest
import torch

from method_cases import CLOSE, check_loss, random
from trl_opsd.losses import Tile
from trl_opsd.methods.papers.eopd import clipped_policy, mean_gap


def entropy(log_p):
    return -(log_p.exp() * log_p).sum(-1)


def on_label(log_probs, labels):
    return log_probs.gather(-1, labels[:, None]).squeeze(-1)


def sampled(log_p, log_q, labels):
    """With p_old = p: r is 1, with the gradient of log p."""
    logps = on_label(log_p, labels)
    ratio = (logps - logps.detach()).exp()
    return -ratio * (on_label(log_q, labels) - logps.detach())


def top_k(log_p, log_q, k):
    values, ids = log_q.topk(k, -1)
    log_t = values.log_softmax(-1)
    return (log_t.exp() * (log_t - log_p.gather(-1, ids))).sum(-1)


@pytest.mark.parametrize("threshold", [0.8, 1.4])
def test_loss(threshold):
    gates = []

    def formula(log_p, log_qs, labels):
        (log_q,) = log_qs
        gates.extend((entropy(log_q) > threshold).tolist())
        return sampled(log_p, log_q, labels) + (entropy(log_q) > threshold) * top_k(log_p, log_q, 5)

    check_loss("eopd", ["privileged"], formula, method_options={"topk": 5, "threshold": threshold})
    assert set(gates) == {True, False}


def test_a_closed_gate_leaves_the_sampled_token():
    check_loss(
        "eopd", ["a"], lambda log_p, log_qs, y: sampled(log_p, log_qs[0], y), method_options={"threshold": 100.0}
    )


def test_the_clip():
    """Value and gradient of max(-r A, -clip(r) A), for ratios and advantages on both sides."""
    draw = random(0)
    z = torch.randn(6, 9, generator=draw, dtype=torch.float64).requires_grad_()
    labels, advantages = torch.arange(6), torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    ratios = torch.tensor([0.5, 1.1, 2.0, 0.5, 1.1, 2.0], dtype=torch.float64)
    log_p = z.log_softmax(-1)
    old = on_label(log_p, labels).detach() - ratios.log()
    r = (on_label(log_p, labels) - old).exp()
    wanted = torch.maximum(-r * advantages, -r.clamp(0.8, 1.2) * advantages)
    (gradient,) = torch.autograd.grad(wanted.sum(), z)
    fixed = log_p.detach()
    tile = Tile(fixed, fixed.exp(), [fixed], labels, old, torch.ones(1, 6, dtype=torch.bool), slice(0, 6))
    loss, got = clipped_policy(tile, advantages, 0.2)
    torch.testing.assert_close(loss, wanted.detach(), **CLOSE)
    torch.testing.assert_close(got, gradient, **CLOSE)
    assert (got.abs().sum(-1) > 0).tolist() == [True, True, False, False, True, True]


def test_unknown_and_known_sampling_probabilities():
    log_p = torch.randn(3, 5, generator=random(1), dtype=torch.float64).log_softmax(-1)
    log_q = torch.randn(3, 5, generator=random(2), dtype=torch.float64).log_softmax(-1)
    labels, taught = torch.arange(3), torch.tensor([[True, True, False]])
    old = torch.tensor([-1.0, torch.nan, -1.0], dtype=torch.float64)
    gap = mean_gap(Tile(log_p, log_p.exp(), [log_q], labels, old, taught, slice(0, 3)))
    wanted = [log_q[0, 0].item() + 1.0, (log_q[1, 1] - log_p[1, 1]).item(), 0.0]
    assert gap.tolist() == pytest.approx(wanted)


def test_identical_contexts():
    """The sampled term is 0; the gated one draws to the most likely tokens, by -log of their mass."""
    log_p = torch.randn(4, 9, generator=random(3), dtype=torch.float64).log_softmax(-1)
    tile = Tile(log_p, log_p.exp(), [log_p], torch.arange(4), None, torch.ones(1, 4, dtype=torch.bool), slice(0, 4))
    loss, gradient = clipped_policy(tile, mean_gap(tile), 0.2)
    assert loss.abs().max() == 0 and gradient.abs().max() == 0
    torch.testing.assert_close(top_k(log_p, log_p, 3), -log_p.topk(3, -1).values.logsumexp(-1), **CLOSE)
