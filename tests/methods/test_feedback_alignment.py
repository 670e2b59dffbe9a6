# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Feedback Alignment: forward KL to the start's weights, which read a step-aligned critique of the rollout."""

from batches import batch_of
from method_cases import check_loss
from scripted import right, sums, writing


ANSWERS = {
    "I add.\n1 + 1 = 3": "Kept: I add.\nCorrected: 1 + 1 = 2",
    "It is 2": "Kept: It is 2\nCorrected: none",
    "It is 6": "Kept: Two and three make\nCorrected: five",
    "It is 4": "It should be 5.",
}


def critic(prompts, rollouts):
    return [ANSWERS[rollout.text] for rollout in rollouts]


def test_loss():
    check_loss("feedback_alignment", ["privileged"], lambda p, qs, _: (qs[0].exp() * (qs[0] - p)).sum(-1))


def test_what_is_right_is_kept_and_one_step_is_rewritten(make_trainer):
    trainer = make_trainer(
        method="feedback_alignment", dataset=sums(), rollout_func=writing(*[[*ANSWERS][:2], [*ANSWERS][2:]]),
        privileged_source={"critic": {"schema": "steps", "author": "test_feedback_alignment.critic"}},
        reward_funcs=right, policy_weight=0.0, shuffle_dataset=False, max_completion_length=200,
    )  # fmt: skip
    batch_of(trainer)
    contexts = [[view.context for view in views] for views in trainer.collected.views]
    assert contexts == [["I add.\n1 + 1 = 2"], ["It is 2"], [], []], "not aligned, and not of the form: no view"
    metrics = trainer._metrics["train"]
    assert metrics["self_distillation/critic_unaligned"] == metrics["self_distillation/critic_malformed"] == [1]
    assert metrics["self_distillation/view_share"] == [0.5]
