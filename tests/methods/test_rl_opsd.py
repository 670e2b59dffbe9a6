# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""RL-OPSD: GRPO, and the reverse KL to the live teacher."""

import pytest
import torch

from method_batches import MIXED, RIGHT, WRONG, gradients, norm, scripted_trainer
from method_cases import check_loss
from trl_opsd import OPSDConfig


def reverse_kl(log_p, log_qs, labels):
    (log_q,) = log_qs
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def test_loss():
    check_loss("rl_opsd", ["privileged"], reverse_kl)


def test_weights():
    config = OPSDConfig("out", method="rl_opsd", bf16=False, num_generations=4)
    assert (config.distillation_weight, config.beta, config.teacher_model_kind) == (0.5, 0.0, "live")


@pytest.mark.parametrize("texts", [[MIXED, WRONG], [WRONG, RIGHT]], ids=["some", "none or all"])
def test_identical_contexts_leave_grpo(make_trainer, texts):
    ours = gradients(scripted_trainer(make_trainer, "rl_opsd", *texts, privileged_source="empty"))
    options = {"distillation_weight": 0.0, "policy_weight": 1.0}
    theirs = gradients(scripted_trainer(make_trainer, "rl_opsd", *texts, **options))
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name])
    assert (norm(theirs[1]) > 0) == (MIXED in texts), "groups of one reward have no advantage"


def test_groups_without_a_spread_learn_from_the_teacher(make_trainer):
    _, gradient = gradients(scripted_trainer(make_trainer, "rl_opsd", WRONG, RIGHT))
    assert norm(gradient) > 0
