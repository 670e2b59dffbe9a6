# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""AntiSD: ascent on the Jensen-Shannon divergence, and the gate."""

import math

import pytest
import torch

from method_batches import MIXED, WRONG, scripted_trainer, views_of
from method_cases import CLOSE, B, C, advantages, random, signals
from trl_opsd.methods import StepContext, StepSummary, method_of


def opened(gate=1.0, **changes):
    batch = signals("antisd", ["privileged"], **changes)
    step_context = StepContext(
        batch.step_context.views, batch.step_context.options, state={"seen": 5.0, "start": 1.0, "gate": gate}
    )
    return signals("antisd", ["privileged"], step_context=step_context, **changes)


def test_advantages():
    batch = opened(scale=torch.tensor(0.5, dtype=torch.float64))
    got = advantages("antisd", batch)
    for b in range(B):
        for c in range(C):
            gap = (batch.teacher_logps[0, b, c] - batch.student_logps[b, c]).item()
            shape = 0.5 * (math.log(1 + math.exp(gap)) - math.log(2)) if batch.mask[b, c] else 0.0
            assert got[b, c].item() == pytest.approx(batch.advantages[b, 0].item() - 0.5 * shape, abs=1e-12)


def test_in_expectation_it_climbs_the_divergence():
    """The mean over sampled tokens of A grad log p is the gradient of JSD(p, q) by p."""
    draw = random(0)
    logits = torch.randn(9, generator=draw, dtype=torch.float64, requires_grad=True)
    log_p, log_q = logits.log_softmax(-1), torch.randn(9, generator=draw, dtype=torch.float64).log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    jsd = 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum()
    advantage = torch.zeros_like(log_q)
    for token in range(9):
        sampled = {"student_logps": log_p.detach()[token].expand(B, C), "teacher_logps": log_q[token].expand(1, B, C)}
        batch = opened(advantages=torch.zeros(B, 1, dtype=torch.float64), **sampled)
        advantage[token] = advantages("antisd", batch)[1, 1]
    policy = (log_p.detach().exp() * advantage * log_p).sum()
    one, other = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (policy, jsd))
    torch.testing.assert_close(one, other, **CLOSE)


def test_it_is_bounded_where_the_teacher_rejects():
    batch = opened(teacher_logps=torch.full((1, B, C), -50.0, dtype=torch.float64))
    extra = (advantages("antisd", batch) - batch.advantages)[batch.mask > 0]
    assert (extra < 0.5 * math.log(2) + 1e-12).all() and (extra > 0.34).all()


def test_shut_gate_and_identical_contexts_leave_grpo():
    for batch in (opened(0.0), opened(teacher_logps=opened().student_logps.unsqueeze(0))):
        torch.testing.assert_close(advantages("antisd", batch), batch.advantages.expand(B, C), **CLOSE)


def test_the_gate():
    method, state, gates = method_of("antisd"), dict(method_of("antisd").state), []
    entropies = [2.0, 1.0, 3.0, None, 2.0, 2.0, 1.9, 1.85, 1.9, 2.0, 1.87, 1.85]
    for step, entropy in enumerate(entropies, 1):
        logged = {} if entropy is None else {"teacher_entropy": entropy}
        summary = StepSummary(step, state, method.options, 0.0, 0.0, 0.0, 8.0, 8.0, logged)
        state = method.update_state(summary)
        gates.append(state["gate"])
    # Five steps to begin with, one without a teacher between them; then shut below 1.86 and open from 2 on
    assert state["start"] == pytest.approx(2.0)
    assert gates == [0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0]


def test_the_gate_follows_a_run(make_trainer):
    trainer = scripted_trainer(make_trainer, "antisd", MIXED, WRONG, max_steps=3, method_options={"warmup": 2})
    trainer.train()
    entropies = [entry["self_distillation/teacher_entropy"] for entry in trainer.state.log_history[:2]]
    assert trainer.method.schedule_state["start"] == pytest.approx(sum(entropies) / 2, rel=1e-5)
    assert trainer.method.schedule_state["seen"] == 2


def test_a_right_sibling_or_the_column(make_trainer):
    views = views_of(scripted_trainer(make_trainer, "antisd", MIXED, WRONG))
    assert views[0]["privileged"] in ("it is 2", "2") and views[1] == {"privileged": "2"}
    assert views[4:] == [{"privileged": "2 + 3 = 5"}] * 4
