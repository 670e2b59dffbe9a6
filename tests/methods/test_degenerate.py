# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Every method on batches that hold nothing to learn, or in which some rollouts have no view, through the trainer."""

import math

import pytest

from method_cases import WITHOUT_TURNS
from trl_opsd import View
from trl_opsd.methods import method_of
from trl_opsd.privileged import rollouts_of


# What methods call the views that they look for
VIEWS = [
    "privileged", "alone", "bare", "context-1", "context-2", "own", "other-1", "wrong", "reference", "mistake", "right",
    "wrong-1",
]  # fmt: skip
PLAIN = ("sdpo", "sdft", "opsd", "pw_opsd", "dasd", "taid", "stop_grad_topk")
# What identical contexts leave: TSD-KD's entropy and ranking, EOPD's set that is renormalised on one side, SDAR's gate
# of one half, TS-OPSD's temperature; each has a test of its own for that
LEFT = {"tsd_kd", "eopd", "sdar", "ts_opsd"}
# Without an advantage these have nothing to give to tokens; AntiSD's gate is shut at first
WITHOUT_ADVANTAGE = ("rlsd", "egrsd", "rlrt", "rlcsd", "antisd", "agent_opsd")


def views_of(name, text):
    """A view with a context, and beside it what the method needs; without a text, the student's own prompt."""
    named = ["privileged"] if name in PLAIN else VIEWS
    return [View(text and (None if view == "bare" else f"{text} {view}."), name=view) for view in named]


def run(make_trainer, name, wanted, text="The", **options):
    """The log of a step. Where a method needs rewards, all are the same, so that no rollout has an advantage."""

    def source(groups):
        return [views_of(name, text) if wanted(rollout.index) else [] for rollout in rollouts_of(groups)]

    if method_of(name).needs_reward or method_of(name).reads_reward:
        options["reward_funcs"] = lambda completions, **_: [0.0] * len(completions)
    elif method_of(name).advantages is None:
        options["policy_weight"] = 0.0
    trainer = make_trainer(
        method=name, privileged=source, privileged_source=None, max_steps=1, num_loss_tokens_to_skip=0, beta=0.0,
        **options,
    )  # fmt: skip
    trainer.train()
    return trainer.state.log_history[0]


@pytest.mark.parametrize("name", WITHOUT_TURNS)
def test_no_view_trains_nothing(make_trainer, name):
    log = run(make_trainer, name, lambda index: False)
    assert log["self_distillation/view_share"] == 0.0 and (log["loss"], log["grad_norm"]) == (0.0, 0.0)


@pytest.mark.parametrize("name", WITHOUT_TURNS)
def test_half_of_the_rollouts_with_views(make_trainer, name):
    log = run(make_trainer, name, lambda index: index % 2 == 0)
    assert log["self_distillation/view_share"] == 0.5
    assert math.isfinite(log["loss"]) and math.isfinite(log["grad_norm"])
    assert (log["grad_norm"] > 0) == (name not in WITHOUT_ADVANTAGE)


@pytest.mark.parametrize("name", [name for name in WITHOUT_TURNS if name not in LEFT])
def test_identical_contexts_teach_nothing(make_trainer, name):
    """All views are the student's own prompt, read by its own weights; a snapshot at the first step has the same."""
    options = {"teacher_model_kind": "live", "teacher_sync_steps": 1, "teacher_update_rate": 0.05}
    options = {} if name == "cgtr" else options
    log = run(make_trainer, name, lambda index: True, text=None, teacher_share_prefix=False, **options)
    assert log["self_distillation/view_share"] == 1.0
    constant = 0.1 * 0.5 if name == "unisd" else 0.0  # contrast times margin, which moves nothing
    assert log["loss"] == pytest.approx(constant, abs=1e-6) and log["grad_norm"] == pytest.approx(0.0, abs=1e-5)
