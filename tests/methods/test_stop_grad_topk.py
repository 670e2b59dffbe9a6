# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Top-k reverse KL with a stopped gradient, and its identities with the other two forms (0.4, numbers 5 and 6)."""

import pytest
import torch

from method_cases import CLOSE, check_loss, random
from trl_opsd.losses import DivergenceSpec, Pair, token_loss


K = 4


def on_set(log_p, log_q, k=K):
    ids = log_p.topk(k, -1).indices
    return log_p.gather(-1, ids), log_q.gather(-1, ids)


def held(log_p, log_qs, labels):
    set_p, set_q = on_set(log_p, log_qs[0])
    return (set_p.exp() * (set_p - set_q).detach()).sum(-1)


def test_loss():
    check_loss("stop_grad_topk", ["privileged"], held, distillation_topk=K)


def test_renormalised():
    def kl(log_p, log_qs, labels):
        set_p, set_q = (side.log_softmax(-1) for side in on_set(log_p, log_qs[0]))
        return (set_p.exp() * (set_p - set_q)).sum(-1)

    check_loss("stop_grad_topk", ["privileged"], kl, distillation_topk=K, distillation_stop_gradient=False)


def gradients(loss, logits, log_q, k=K):
    z = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(*on_set(z.log_softmax(-1), log_q, k)).sum(), z)[0]


@pytest.fixture
def pair():
    draw = random(0)
    z, w = (torch.randn(6, 11, generator=draw, dtype=torch.float64) for _ in range(2))
    return z, w.log_softmax(-1)


def ours(logits, log_q, **options):
    pair = Pair.of(logits.log_softmax(-1), log_q)
    return token_loss(pair, DivergenceSpec(divergence="reverse_kl", topk=K, **options)).gradient


def test_the_stopped_term_pushes_mass_out_of_the_set(pair):
    """grad L_raw = grad L_sg + grad of the mass of the set."""
    raw = gradients(lambda p, q: p.exp() * (p - q), *pair)
    mass = gradients(lambda p, q: p.exp(), *pair)
    torch.testing.assert_close(ours(*pair, stop_gradient=True), raw - mass, **CLOSE)
    assert mass.abs().max() > 1e-3


def test_over_the_whole_vocabulary_the_term_is_zero(pair):
    raw = gradients(lambda p, q: p.exp() * (p - q), *pair, k=11)
    whole = token_loss(
        Pair.of(pair[0].log_softmax(-1), pair[1]), DivergenceSpec("reverse_kl", topk=11, stop_gradient=True)
    )
    torch.testing.assert_close(whole.gradient, raw, **CLOSE)


def test_renormalised_it_makes_no_difference(pair):
    def stopped(p, q):
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        return p.exp() * (p - q).detach()

    torch.testing.assert_close(ours(*pair), gradients(stopped, *pair), **CLOSE)


def test_identical_contexts(pair):
    z, _ = pair
    assert ours(z, z.log_softmax(-1), stop_gradient=True).abs().max() == 0
