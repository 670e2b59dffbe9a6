# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Targeted hints: forward KL of the hinted self on the failed turn alone."""

import math

import pytest

from agents import SCRIPTS, agent_model, agent_tokenizer, follow_scripts, multiply
from batches import batch_of, taught_by_row
from method_cases import check_loss
from trl_opsd.methods.papers.targeted_hint import RULE


def forward(log_p, log_qs, labels):
    return (log_qs[0].exp() * (log_qs[0] - log_p)).sum(-1)


def test_loss():
    check_loss("targeted_hint", ["hint"], forward)


def rewarded(values):
    """A reward for each rollout in turn, by the script that it follows."""

    def reward(completions, **_):
        return [values[i % len(values)] for i in range(len(completions))]

    return reward


def hinted(make_trainer, rewards, **options):
    trainer = make_trainer(
        agent_model(), method="targeted_hint", tools=[multiply], processing_class=agent_tokenizer(),
        reward_funcs=rewarded(rewards), num_generations=4, max_completion_length=600, max_tool_calling_iterations=4,
        **options,
    )  # fmt: skip
    follow_scripts(trainer, SCRIPTS)
    return trainer, batch_of(trainer)


def test_the_rollout_with_most_errors_of_a_failing_group(make_trainer):
    trainer, batch = hinted(make_trainer, [0.0, 0.1, 0.1, 0.0])
    assert [len(views) for views in trainer.collected.views] == [1, 0, 0, 0]
    ((view,), *_) = trainer.collected.views
    assert (view.context, view.place, view.position, view.policy) == (RULE["hint"], "before_turn", 0, False)
    by_rollout = dict(zip(batch["distillation"].index.tolist(), taught_by_row(trainer, batch, "hint"), strict=True))
    assert by_rollout[0] == SCRIPTS[0][0], "the turn that failed, and no other"
    advantages = dict(zip(batch["distillation"].index.tolist(), batch["advantages"].tolist(), strict=True))
    assert advantages[0] == 0 and advantages[1] > 0, "its own reward does not count, its group's does"
    assert math.isfinite(trainer.compute_loss(trainer.model, batch).item())


@pytest.mark.parametrize("rewards", [[0.0, 0.3, 0.0, 0.0], [1.0] * 4], ids=["one does well", "all do"])
def test_a_group_that_does_well_has_no_hint(make_trainer, rewards):
    trainer, batch = hinted(make_trainer, rewards)
    assert not any(trainer.collected.views)
    assert trainer.policy_weight == 1 and not batch["distillation"].counts.distilled_tokens.item()


def test_composers_variant_hints_every_failed_turn_and_keeps_the_reward(make_trainer):
    source = {"turn_hint": {"rules": [RULE], "max_hints": 4}}
    trainer, _ = hinted(make_trainer, [1.0, 0.0, 0.0, 0.0], privileged_source=source)
    assert [[view.position for view in views] for views in trainer.collected.views] == [[0, 1], [1], [], []]
    assert all(view.policy for views in trainer.collected.views for view in views)
