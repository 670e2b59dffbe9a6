# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Purified OPSD: the target tilted by what the problem adds to the reference."""

import math

import pytest
import torch

from method_cases import check_loss, random
from trl_opsd.methods.papers.purified import tilted


VIEWS = ["privileged", "alone", "bare"]


def target(bare, full, alone, c=10.0, b=1.0):
    gain = full - alone
    gain = gain - gain.sum(-1, keepdim=True) / gain.shape[-1]
    weights = bare.exp() * (c * torch.tanh(gain / c) / b).exp()
    return (weights / weights.sum(-1, keepdim=True)).log()


def jsd(log_p, log_q):
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_q.exp() * (log_q - log_m) + log_p.exp() * (log_p - log_m)).sum(-1)


@pytest.mark.parametrize(("bound", "temperature"), [(10.0, 1.0), (0.5, 2.0)])
def test_loss(bound, temperature):
    def formula(log_p, log_qs, labels):
        full, alone, bare = log_qs
        return jsd(log_p, target(bare, full, alone, bound, temperature))

    check_loss("purified", VIEWS, formula, method_options={"bound": bound, "temperature": temperature})


def distributions(seed):
    return torch.randn(3, 6, 9, generator=random(seed), dtype=torch.float64).log_softmax(-1)


def test_a_problem_that_adds_nothing_leaves_the_base():
    bare, full, _ = distributions(0)
    torch.testing.assert_close(tilted(bare, full, full, 10.0, 1.0), bare)


def test_the_bound_holds_the_tilt():
    """However much is gained, no token's odds change by more than exp(2 c / b)."""
    bare, full, alone = distributions(1)
    tilt = tilted(bare, 100 * full, alone, 0.5, 2.0) - bare
    assert (tilt.amax(-1) - tilt.amin(-1)).max() <= 2 * 0.5 / 2.0 + 1e-12
    assert (tilt.amax(-1) - tilt.amin(-1)).max() > 0.4


def test_the_target_is_the_best_distribution():
    """It maximises E_P[r] - b KL(P||P0) (0.4, number 10)."""
    bare, full, alone = distributions(2)
    b, gain = 1.5, full - alone
    reward = 10 * torch.tanh((gain - gain.mean(-1, keepdim=True)) / 10)

    def value(log_p):
        return (log_p.exp() * (reward - b * (log_p - bare))).sum(-1)

    best = tilted(bare, full, alone, 10.0, b)
    noise = torch.randn(50, 6, 9, generator=random(3), dtype=torch.float64)
    others = (best + torch.logspace(-3, 1, 50, dtype=torch.float64)[:, None, None] * noise).log_softmax(-1)
    assert (value(others) < value(best)).all()


def test_views_of_another_name_teach_nothing(make_trainer):
    source = {"with_baselines": {"source": {"column": {"name": "hint"}}}}
    trainer = make_trainer(method="purified", privileged_source=source, max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    with_view = sum(one.row["privileged_context"] is not None for one in trainer.collected.rollouts)
    assert log["self_distillation/incomplete_rollouts"] == with_view > 0
    assert log["self_distillation/view_share"] == log["loss"] == log["grad_norm"] == 0.0


def test_identical_contexts(make_trainer):
    """All three views alike, read by the student's own weights: nothing to learn."""
    from trl_opsd import View
    from trl_opsd.privileged import rollouts_of

    views = [View(name=name) for name in VIEWS]
    trainer = make_trainer(
        method="purified", privileged=lambda groups: [views for _ in rollouts_of(groups)], privileged_source=None,
        max_steps=1,
    )  # fmt: skip
    trainer.train()
    log = trainer.state.log_history[0]
    assert abs(log["loss"]) < 1e-6 and log["grad_norm"] < 1e-5
