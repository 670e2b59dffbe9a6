# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""RetireOPD: the teacher is dropped once the divergence stalls and the student is able."""

import math

import pytest
import torch

from conftest import length_reward
from method_batches import MIXED, RIGHT, gradients, norm, scripted_trainer
from method_cases import check_loss
from trl_opsd.methods import StepContext, StepSummary, method_of


RETIRE = method_of("retire_opd")
OPTIONS = {"window": 2, "rate": 0.1, "share": 0.9, "goal": 0.5}  # able from 0.45 on


def weights(steps, **options):
    """The weight after each step, from its divergence and its reward."""
    state, options, found = RETIRE.state, {**RETIRE.options, **OPTIONS, **options}, []
    for step, (divergence, reward) in enumerate(steps, start=1):
        logged = {} if divergence is None else {"divergence": divergence}
        summary = StepSummary(
            step=step, state=state, options=options, loss=0.0, reward=reward, truncated=0.0, mean_length=1.0,
            tail_length=1.0, logged=logged,
        )  # fmt: skip
        state = RETIRE.update_state(summary)
        found.append(RETIRE.distillation_weight(StepContext([], options, step, 0.0, state)))
    return found


def expected(steps, window=2, rate=0.1, least=0.45):
    """The rule written out over whole windows."""
    means = [
        [sum(pair[i] for pair in steps[start : start + window]) / window for i in (0, 1)]
        for start in range(0, len(steps) - window + 1, window)
    ]
    for k in range(1, len(means)):
        if (means[k - 1][0] - means[k][0]) / means[k - 1][0] < rate and means[k][1] >= least:
            return [1.0] * ((k + 1) * window - 1) + [0.0] * (len(steps) - (k + 1) * window + 1)
    return [1.0] * len(steps)


def test_schedule():
    """Falling and able, stalled and unable, then both: the third window ends it, whatever comes after."""
    steps = [(2.0, 0.9), (1.8, 0.7), (1.0, 0.2), (1.2, 0.4), (1.05, 0.5), (1.1, 0.6), (0.1, 0.0), (0.1, 0.0)]
    assert weights(steps) == expected(steps) == [1.0] * 5 + [0.0] * 3


@pytest.mark.parametrize("seed", range(5))
def test_schedule_of_any_run(seed):
    draw = torch.Generator().manual_seed(seed)
    falls = 2 * torch.rand(30, generator=draw, dtype=torch.float64) ** 2 + 0.1
    steps = list(zip(falls.tolist(), torch.rand(30, generator=draw, dtype=torch.float64).tolist(), strict=True))
    assert weights(steps) == expected(steps)


def test_either_alone_does_not_end_it():
    assert weights([(1.0, 0.4)] * 8) == [1.0] * 8, "stalled, never able"
    assert weights([(0.8**step, 1.0) for step in range(8)]) == [1.0] * 8, "able, still falling"
    assert weights([(1.0, 1.0)] * 4) == [1.0, 1.0, 1.0, 0.0], "the first window has none before it"


def test_steps_that_measured_nothing_do_not_count():
    nothing = (None, math.nan)
    assert weights([(1.0, 1.0), nothing, (1.0, 1.0), nothing]) == [1.0, 1.0, 1.0, 0.0]
    assert weights([(1.0, 1.0), (1.0, 1.0), nothing, nothing, (1.0, 1.0), (1.0, 1.0)]) == [1.0] * 5 + [0.0]


def test_loss():
    def formula(log_p, log_qs, labels):
        return (log_p.exp() * (log_p - log_qs[0])).sum(-1)

    assert check_loss("retire_opd", ["privileged"], formula) > 0


def test_after_it_the_run_is_grpo(make_trainer):
    retired = scripted_trainer(make_trainer, "retire_opd", MIXED, RIGHT)
    retired.method.schedule_state["weight"] = 0.0
    loss, ours = gradients(retired)
    plain = {"distillation_weight": 0.0, "policy_weight": 1.0}
    expected, theirs = gradients(scripted_trainer(make_trainer, "retire_opd", MIXED, RIGHT, **plain))
    torch.testing.assert_close(loss, expected)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name])
    assert norm(theirs) > 0


def test_a_run(make_trainer):
    """The second window ends it; the retired teacher is still logged."""
    options = {"reward_funcs": length_reward, "max_steps": 3, "per_device_train_batch_size": 16}
    at_once = {"window": 1, "rate": 10.0, "goal": 1e-9}
    trainer = make_trainer(method="retire_opd", method_options=at_once, **options)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["self_distillation/method_weight"] for log in logs] == [1.0, 1.0, 0.0]
    assert all(log["self_distillation/divergence"] > 0 for log in logs)
