# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""HDPO: distillation where the whole group fails."""

import math

import torch

from method_batches import MIXED, RIGHT, WRONG, gradients, norm, scripted_trainer, views_of
from method_cases import check_loss
from trl_opsd import OPSDConfig


def test_loss():
    def jsd(log_p, log_qs, labels):
        (log_q,) = log_qs
        ids = log_q.topk(4, dim=-1).indices
        top_p, top_q = (one.gather(-1, ids) for one in (log_p, log_q))
        p, q = (torch.cat([one, (1 - one.exp().sum(-1, keepdim=True)).log()], -1) for one in (top_p, top_q))
        m = torch.logaddexp(p, q) - math.log(2)
        return 0.5 * (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1)

    check_loss("hdpo", ["privileged"], jsd, distillation_topk=4)


def test_who_is_distilled(make_trainer):
    views = views_of(scripted_trainer(make_trainer, "hdpo", MIXED, WRONG))
    assert views == [{}] * 4 + [{"privileged": "2 + 3 = 5"}] * 4


def test_all_right_teaches_nothing_and_all_wrong_the_teacher_alone(make_trainer):
    _, gradient = gradients(scripted_trainer(make_trainer, "hdpo", ["2", "is 2", "so 2", "a 2"], RIGHT))
    assert norm(gradient) == 0
    _, gradient = gradients(scripted_trainer(make_trainer, "hdpo", WRONG, WRONG))
    assert norm(gradient) > 0


def test_mixed_groups_alone_are_grpo(make_trainer):
    ours = gradients(scripted_trainer(make_trainer, "hdpo", MIXED, RIGHT))
    theirs = gradients(scripted_trainer(make_trainer, "hdpo", MIXED, RIGHT, distillation_weight=0.0, policy_weight=1.0))
    for name, one in ours[1].items():
        torch.testing.assert_close(one, theirs[1][name])
    assert norm(theirs[1]) > 0


def test_weight():
    assert OPSDConfig("out", method="hdpo", bf16=False, num_generations=4).distillation_weight == 0.01
