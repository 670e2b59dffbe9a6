# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""TAID: the interpolated target and its schedule."""

import math

import pytest
import torch

from method_cases import check_loss, random
from trl_opsd.losses.mixing import interpolated
from trl_opsd.methods import StepSummary, method_of


TAID = method_of("taid")


@pytest.mark.parametrize("share", [0.4, 0.75, 1.0])
def test_loss(share):
    def formula(log_p, log_qs, labels):
        log_m = ((1 - share) * log_p.detach() + share * log_qs[0]).log_softmax(-1)
        return (log_m.exp() * (log_m - log_p)).sum(-1)

    loss = check_loss("taid", ["privileged"], formula, live_state={"share": share, "trend": 0.0, "loss": 1.0})
    assert loss > 0


def test_it_begins_at_the_start():
    def formula(log_p, log_qs, labels):
        log_m = (0.7 * log_p.detach() + 0.3 * log_qs[0]).log_softmax(-1)
        return (log_m.exp() * (log_m - log_p)).sum(-1)

    check_loss("taid", ["privileged"], formula, method_options={"start": 0.3})


def summary(state, loss, progress=0.0, **options):
    return StepSummary(
        step=1, state=state, options={**TAID.options, **options}, loss=loss, reward=math.nan, truncated=0.0,
        mean_length=1.0, tail_length=1.0, progress=progress,
    )  # fmt: skip


def test_schedule():
    """The published recurrence, written out for three losses."""
    state, options = TAID.state, {"rate": 0.05, "momentum": 0.9}
    state = TAID.update_state(summary(state, 2.0, **options))
    assert state == {"share": 0.0, "trend": 0.0, "loss": 2.0}, "one loss has no trend"
    share, trend, before = 0.4, 0.0, 2.0
    for loss, progress in ((1.5, 0.01), (1.8, 0.02), (0.5, 0.6)):
        trend = 0.9 * trend + 0.1 * (before - loss) / before
        share = min(1.0, max(0.4 + 0.6 * progress, share + 0.05 / (1 + math.exp(-trend)) * (1 - share)))
        state, before = TAID.update_state(summary(state, loss, progress, **options)), loss
        assert state == pytest.approx({"share": share, "trend": trend, "loss": loss})
    assert share == pytest.approx(0.76), "time is ahead in the end"


def test_a_falling_loss_moves_it_faster():
    state = {"share": 0.5, "trend": 0.0, "loss": 1.0}
    falling, rising = (TAID.update_state(summary(state, loss, rate=0.1, momentum=0.0))["share"] for loss in (0.1, 1.9))
    assert falling > rising > 0.5


def test_no_loss_moves_nothing():
    """Not the time either, with which the next loss catches up."""
    state = {"share": 0.6, "trend": 0.1, "loss": 1.0}
    assert TAID.update_state(summary(state, 0.0, progress=0.9)) == state
    assert TAID.update_state(summary(TAID.state, 0.0, progress=0.9)) == TAID.state
    assert TAID.update_state(summary(state, 1.0, progress=0.9))["share"] == pytest.approx(0.94)


def test_it_never_passes_the_end():
    state = {"share": 0.79, "trend": 5.0, "loss": 1.0}
    assert TAID.update_state(summary(state, 0.5, 1.0, end=0.8, rate=1.0))["share"] == 0.8


def test_interpolating_logits_is_interpolating_log_probabilities():
    a, b = torch.randn(2, 5, 7, generator=random(0), dtype=torch.float64)
    got = interpolated(a.log_softmax(-1), b.log_softmax(-1), 0.4)
    torch.testing.assert_close(got, (0.6 * a + 0.4 * b).log_softmax(-1))


def test_the_share_grows_in_a_run(make_trainer):
    trainer = make_trainer(method="taid", max_steps=4)
    trainer.train()
    assert trainer.method.schedule_state["share"] >= 0.4 + 0.6 * 3 / 4 and trainer.method.schedule_state["loss"] > 0
