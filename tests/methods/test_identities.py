# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Gradients on logits z, p = softmax(z), that the losses must have, each from its formula, in float64."""

import pytest
import torch

from method_cases import CLOSE, B, C, random, signals
from trl_opsd.kernels import fused_linear_divergence


SIZE = 11


@pytest.fixture(params=[0, 1])
def sides(request):
    """Logits of the student, and log-probabilities of both sides."""
    logits = torch.randn(SIZE, generator=random(request.param), dtype=torch.float64, requires_grad=True)
    log_q = torch.randn(SIZE, generator=random(request.param + 10), dtype=torch.float64).log_softmax(-1)
    return logits, logits.detach().log_softmax(-1), log_q


def gradient(logits, log_q, **options):
    """Of this library's loss of one token: the hidden states are the logits, and the head is the identity."""
    head = torch.eye(SIZE, dtype=torch.float64)
    loss, stats = fused_linear_divergence(logits[None], head, log_q[None], head, **options)
    return torch.autograd.grad(loss, logits, retain_graph=True)[0], loss.item(), stats


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_forward_kl(sides, temperature):
    """(p - q) / tau, both sides at the temperature."""
    logits, _, log_q = sides
    got, *_ = gradient(logits, log_q, kind="forward_kl", temperature=temperature)
    p, q = ((one / temperature).softmax(-1) for one in (logits.detach(), log_q))
    torch.testing.assert_close(got, (p - q) / temperature, **CLOSE)


def test_reverse_kl(sides):
    """p_v (log(p_v / q_v) - RKL)."""
    logits, log_p, log_q = sides
    got, value, _ = gradient(logits, log_q, kind="reverse_kl")
    p = log_p.exp()
    assert value == pytest.approx((p * (log_p - log_q)).sum().item())
    torch.testing.assert_close(got, p * (log_p - log_q - value), **CLOSE)


def test_the_sampled_token_is_the_reverse_kl_and_not_the_forward_one(sides):
    """The mean over v ~ p of -gap grad log p_v, with the gap that advantages are made of."""
    logits, log_p, log_q = sides
    live = logits.log_softmax(-1)
    surrogate = torch.zeros((), dtype=torch.float64)
    for token in range(SIZE):
        sampled = {"student_logps": log_p[token].expand(B, C), "teacher_logps": log_q[token].expand(1, B, C)}
        gap = signals("rl_opsd", ["privileged"], **sampled).gap[1, 1]
        surrogate = surrogate - log_p[token].exp() * gap * live[token]
    (got,) = torch.autograd.grad(surrogate, logits)
    torch.testing.assert_close(got, gradient(logits, log_q, kind="reverse_kl")[0], **CLOSE)
    assert (got - gradient(logits, log_q, kind="forward_kl")[0]).abs().max() > 1e-3


def test_a_clipped_entry_gives_nothing_and_each_other_one_minus_q_grad_log_p(sides):
    """The sum can be negative: entries with p > q are, and no clip is on them."""
    logits, log_p, log_q = sides
    entries = log_q.exp() * (log_q - log_p)
    got, value, _ = gradient(logits, log_q, kind="forward_kl", entry_clip=0.05)
    free = entries < 0.05
    assert free.any() and not free.all() and value == pytest.approx(entries.clamp(max=0.05).sum().item())
    assert value < 0 < entries.sum()
    live = logits.log_softmax(-1)
    (wanted,) = torch.autograd.grad(-(log_q.exp() * live)[free].sum(), logits)
    torch.testing.assert_close(got, wanted, **CLOSE)
