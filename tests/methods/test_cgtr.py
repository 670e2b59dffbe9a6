# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The gated teacher: renewed only when the reward rose and the tail of the lengths is safe."""

import json
import math

import pytest
import torch

from conftest import length_reward
from method_cases import check_loss
from trl_opsd.methods import StepSummary, method_of


METHOD = method_of("cgtr")
OPTIONS = {**METHOD.options, "every": 2}


def followed(rewards, tails=None, truncated=None, **options):
    """Whether the teacher is renewed after each step, and the state at the end."""
    state, renewed = dict(METHOD.state), []
    for i, reward in enumerate(rewards):
        summary = StepSummary(
            step=i + 1, state=state, options={**OPTIONS, **options}, loss=1.0, reward=reward,
            truncated=(truncated or [0.0] * len(rewards))[i], mean_length=10.0,
            tail_length=(tails or [10.0] * len(rewards))[i],
        )  # fmt: skip
        state = METHOD.update_state(summary)
        renewed.append(METHOD.should_sync_teacher(state))
    return renewed, state


def test_loss():
    check_loss("cgtr", ["privileged"], lambda log_p, log_qs, _: (log_qs[0].exp() * (log_qs[0] - log_p)).sum(-1))


def test_only_at_a_gate_and_only_after_a_rise():
    # Means between gates: 0.2, 0.3, 0.3, 0.25, 0.35. The third is no rise, the fifth rises over the last renewal's
    renewed, state = followed([0.1, 0.3, 0.5, 0.1, 0.3, 0.3, 0.0, 0.5, 0.4, 0.3])
    assert renewed == [False, False, False, True, False, False, False, False, False, True]
    assert state["best"] == pytest.approx(0.35)
    assert {state[name] for name in ("steps", "reward", "tail", "truncated")} == {0.0}, "the next window starts anew"


def test_a_margin():
    rewards = [0.2, 0.2, 0.3, 0.3, 0.5, 0.5]
    assert followed(rewards, margin=0.15)[0] == [False] * 5 + [True]


@pytest.mark.parametrize(
    "risk", [{"tails": [10.0, 10.0, 15.1, 15.1]}, {"truncated": [0.0, 0.0, 0.6, 0.6]}], ids=["tail", "truncated"]
)
def test_a_rise_with_an_unsafe_tail_renews_nothing(risk):
    renewed, state = followed([0.1, 0.1, 0.9, 0.9], **risk)
    assert not any(renewed) and state["best"] == pytest.approx(0.1), "and sets no mark that is harder to pass"


def test_a_tail_at_its_bound_is_safe():
    assert followed([0.1, 0.1, 0.9, 0.9], tails=[10.0, 10.0, 15.0, 15.0], truncated=[0.5] * 4)[0][-1]


@pytest.mark.parametrize("reward", [0.0, 1.0, math.nan], ids=["all wrong", "all right", "no reward"])
def test_without_a_rise_the_teacher_stays_the_starts(reward):
    assert not any(followed([reward] * 12)[0])


def run(make_trainer, steps, **options):
    """A run whose rewards rise with each step."""
    return make_trainer(
        method="cgtr", method_options={"every": 2, "truncated": 1.0, "tail": 9.0}, reward_funcs=rising,
        save_strategy="steps", save_steps=1, max_steps=steps, **options,
    )  # fmt: skip


def rising(completions, trainer_state, **_):
    return [trainer_state.global_step + value / 10 for value in length_reward(completions)]


def test_the_trainer_renews_at_gates_and_resumes(make_trainer, tmp_path):
    whole = run(make_trainer, 5, output_dir=str(tmp_path / "whole"))
    whole.train()
    assert whole.teacher.num_updates == 1, "the first gate only sets the mark"
    assert whole.method.schedule_state["steps"] == 1 and whole.method.schedule_state["best"] > 2
    saved = json.loads((tmp_path / "whole" / "checkpoint-3" / "_parts_0.json").read_text())["method"]
    assert saved["state"]["steps"] == 1 and saved["state"]["best"] < 1

    again = run(make_trainer, 5, output_dir=str(tmp_path / "again"))
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert again.method.schedule_state == pytest.approx(whole.method.schedule_state)
    for name, part in whole.teacher.weights.copies.items():
        torch.testing.assert_close(again.teacher.weights.copies[name], part)


def test_other_teachers_are_refused(make_trainer):
    with pytest.raises(ValueError, match="`teacher_model_kind` must be 'snapshot', not 'live'"):
        make_trainer(method="cgtr", teacher_model_kind="live", reward_funcs=length_reward)
