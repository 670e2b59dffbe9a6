# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""AVSD: consensus of views and a bounded residual, over distributions and on sampled tokens."""

import math

import pytest
import torch

from method_cases import CLOSE, B, C, advantages, check_loss, random, signals
from trl_opsd.losses.mixing import coherent_gap


VIEWS = ["solution", "part", "answer"]


def formula(gaps):
    """A^G + lambda J from the gaps of M views at one place, after the paper."""
    m = len(gaps)
    consensus = sum(gaps) / m
    arithmetic = math.log(sum(math.exp(gap) for gap in gaps) / m)
    residual = max(arithmetic - consensus, 0.0)
    coherence = abs(consensus) / (sum(abs(gap) for gap in gaps) / m + 1e-8)
    proportion = abs(consensus) / (abs(consensus) + residual + 1e-8)
    return consensus + coherence * proportion * residual


def test_advantages():
    batch = signals("avsd_tokens", VIEWS, scale=torch.tensor(0.4, dtype=torch.float64))
    got = advantages("avsd_tokens", batch)
    for b in range(B):
        for c in range(C):
            gaps = [(batch.teacher_logps[m, b, c] - batch.student_logps[b, c]).item() for m in range(3)]
            wanted = batch.advantages[b, 0].item() + (0.4 * formula(gaps) if batch.mask[b, c] else 0.0)
            assert got[b, c].item() == pytest.approx(wanted, abs=1e-12)


def test_distributions():
    def kl_to_consensus(log_p, log_qs, labels):
        fixed = log_p.detach()
        n, v = fixed.shape
        hats = [[formula([(log_q[i, j] - fixed[i, j]).item() for log_q in log_qs]) for j in range(v)] for i in range(n)]
        log_target = (fixed + torch.tensor(hats, dtype=torch.float64)).log_softmax(-1)
        return (log_target.exp() * (log_target - log_p)).sum(-1)

    check_loss("avsd", VIEWS, kl_to_consensus)


def test_one_view_is_plain_distillation():
    def forward_kl(log_p, log_qs, labels):
        return (log_qs[0].exp() * (log_qs[0] - log_p)).sum(-1)

    check_loss("avsd", ["answer"], forward_kl)
    batch = signals("avsd_tokens", ["answer"])
    torch.testing.assert_close(advantages("avsd_tokens", batch), batch.advantages + batch.gap, **CLOSE)


def test_the_sign_is_that_of_the_consensus():
    """lambda J <= |A^G| (0.4, number 9)."""
    gaps = 4 * torch.randn(3, 500, generator=random(0), dtype=torch.float64)
    hats, consensus = coherent_gap(gaps, torch.full_like(gaps, 1 / 3)), gaps.mean(0)
    assert torch.equal(hats.sign(), consensus.sign())
    assert ((hats - consensus).abs() <= consensus.abs()).all() and ((hats - consensus) > 0).any()


def test_views_that_say_the_same_leave_no_residual():
    one = torch.randn(20, generator=random(1), dtype=torch.float64)
    torch.testing.assert_close(
        coherent_gap(one.expand(3, -1), torch.full((3, 20), 1 / 3, dtype=torch.float64)), one, **CLOSE
    )


def test_a_view_that_does_not_teach_is_left_out():
    gaps = torch.randn(3, 20, generator=random(2), dtype=torch.float64)
    shares = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)[:, None].expand(3, 20)
    torch.testing.assert_close(coherent_gap(gaps, shares), coherent_gap(gaps[:2], shares[:2]), **CLOSE)


def test_identical_contexts():
    batch = signals("avsd_tokens", VIEWS)
    alike = signals("avsd_tokens", VIEWS, teacher_logps=batch.student_logps.expand(3, -1, -1))
    torch.testing.assert_close(advantages("avsd_tokens", alike), alike.advantages.expand(B, C), rtol=0, atol=1e-12)


def test_no_view_leaves_the_verifiers_advantages():
    batch = signals("avsd_tokens", VIEWS, shares=torch.zeros(3, B, C).double(), mask=torch.zeros(B, C).double())
    assert torch.equal(advantages("avsd_tokens", batch), batch.advantages.expand(B, C))
