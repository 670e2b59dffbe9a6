# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""SDAR: a gate on each token."""

import math

import pytest
import torch

from method_cases import CLOSE, B, C, advantages, random, signals


@pytest.mark.parametrize("beta", [5.0, 1.0])
def test_advantages(beta):
    batch = signals("sdar", ["privileged"], options={"beta": beta}, scale=torch.tensor(0.3, dtype=torch.float64))
    got = advantages("sdar", batch)
    for b in range(B):
        for c in range(C):
            gap = (batch.teacher_logps[0, b, c] - batch.student_logps[b, c]).item()
            gate = 1 / (1 + math.exp(-beta * gap)) if batch.mask[b, c] else 0.0
            assert got[b, c].item() == pytest.approx(batch.advantages[b, 0].item() + 0.3 * gate, abs=1e-12)


def test_gradient_of_the_papers_loss():
    """sg(g) (log q - log p) and TRL's -ratio A, with A what the method makes, have one gradient."""
    draw = random(1)
    logits = torch.randn(7, generator=draw, dtype=torch.float64, requires_grad=True)
    log_p, log_q = logits.log_softmax(-1), torch.randn(7, generator=draw, dtype=torch.float64).log_softmax(-1)
    for token in range(7):
        sampled = {"student_logps": log_p.detach()[token].expand(B, C), "teacher_logps": log_q[token].expand(1, B, C)}
        batch = signals("sdar", ["privileged"], advantages=torch.zeros(B, 1, dtype=torch.float64), **sampled)
        paper = (5 * (log_q - log_p)[token].detach()).sigmoid() * (log_q[token] - log_p[token])
        ours = -(log_p[token] - log_p[token].detach()).exp() * advantages("sdar", batch)[1, 1]
        one, other = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (paper, ours))
        torch.testing.assert_close(one, other, **CLOSE)


def test_rejected_tokens_are_nearly_left_alone():
    far = torch.full((1, B, C), -3.0, dtype=torch.float64)
    batch = signals("sdar", ["privileged"], teacher_logps=far, student_logps=torch.zeros(B, C, dtype=torch.float64))
    extra = advantages("sdar", batch) - batch.advantages
    assert (extra[batch.mask > 0] < 1e-6).all() and (extra[batch.mask > 0] > 0).all()


def test_identical_contexts_pull_by_a_half():
    batch = signals("sdar", ["privileged"])
    alike = signals("sdar", ["privileged"], teacher_logps=batch.student_logps.unsqueeze(0))
    torch.testing.assert_close(advantages("sdar", alike), batch.advantages + 0.5 * batch.mask, **CLOSE)


def test_no_view_leaves_grpo():
    nothing = torch.zeros(1, B, C, dtype=torch.float64)
    batch = signals("sdar", ["privileged"], shares=nothing, mask=nothing[0])
    torch.testing.assert_close(advantages("sdar", batch), batch.advantages.expand(B, C), **CLOSE)
