# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Batches in which some rollouts have no view, or none has: every method without a policy term takes them."""

import math

import pytest

from trl_opsd import View
from trl_opsd.methods import method_names, method_of
from trl_opsd.privileged import rollouts_of


NAMES = [name for name in method_names() if not method_of(name).needs_reward]
# What methods call the views that they look for
VIEWS = ["privileged", "alone", "bare", "context-1", "context-2", "own", "other-1", "wrong"]
PLAIN = ("sdpo", "sdft", "opsd", "pw_opsd", "dasd", "taid", "stop_grad_topk")


def views_of(name):
    """A view with a context, and beside it what the method needs."""
    named = ["privileged"] if name in PLAIN else VIEWS
    return [View(None if view == "bare" else f"The {view} one.", name=view) for view in named]


def run(make_trainer, name, wanted):
    def source(groups):
        return [views_of(name) if wanted(rollout.index) else [] for rollout in rollouts_of(groups)]

    options = {"policy_weight": 0.0} if method_of(name).advantages is None else {}
    trainer = make_trainer(
        method=name, privileged=source, privileged_source=None, max_steps=1, num_loss_tokens_to_skip=0, **options
    )
    trainer.train()
    return trainer.state.log_history[0]


@pytest.mark.parametrize("name", NAMES)
def test_no_view_trains_nothing(make_trainer, name):
    log = run(make_trainer, name, lambda index: False)
    assert log["self_distillation/view_share"] == 0.0 and (log["loss"], log["grad_norm"]) == (0.0, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_rollouts_with_views(make_trainer, name):
    log = run(make_trainer, name, lambda index: index % 2 == 0)
    assert log["self_distillation/view_share"] == 0.5
    assert math.isfinite(log["loss"]) and 0 < log["grad_norm"] < math.inf
