# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""SRPO: who is distilled, and with what weight."""

import math

import torch

from batches import batch_of
from method_batches import MIXED, RIGHT, WRONG, gradients, norm, scripted_trainer, views_of
from method_cases import check_loss, signals
from trl_opsd import OPSDConfig
from trl_opsd.losses import TokenStats
from trl_opsd.methods import method_of


def with_tail(log_probs, ids):
    top = log_probs.gather(-1, ids)
    return torch.cat([top, (1 - top.exp().sum(-1, keepdim=True)).log()], dim=-1)


def weighted_jsd(k, beta):
    def loss(log_p, log_qs, labels):
        (log_q,) = log_qs
        entropy = -(log_q.exp() * log_q).sum(-1)
        weight = (-beta * entropy).exp()
        ids = log_p.topk(k, dim=-1).indices
        p, q = with_tail(log_p, ids), with_tail(log_q, ids)
        m = torch.logaddexp(p, q) - math.log(2)
        jsd = 0.5 * (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1)
        return weight / weight.mean() * jsd

    return loss


def test_loss():
    check_loss("srpo", ["privileged"], weighted_jsd(4, 1.0), distillation_topk=4)


def test_an_option_of_the_weights():
    options = {"method_options": {"beta": 0.3}}
    value = check_loss("srpo", ["privileged"], weighted_jsd(4, 0.3), distillation_topk=4, **options)
    plain = check_loss("srpo", ["privileged"], weighted_jsd(4, 0.0), distillation_topk=4, method_options={"beta": 0.0})
    assert value != plain


def test_weights_have_a_mean_of_one_over_the_taught_tokens():
    stats = TokenStats(
        teacher_logps=torch.zeros(1, 5), teacher_entropy=torch.tensor([[0.0, 1.0, 2.0, 0.5, 9.0]]),
        student_logps=torch.zeros(5), student_entropy=torch.zeros(5), relative_positions=torch.zeros(5),
        rows=torch.zeros(5),
        taught=torch.tensor([[True, True, True, True, False]]),
    )  # fmt: skip
    factors = method_of("srpo").token_weight(signals("srpo", ["privileged"]).step_context)
    got = factors(stats)[0]
    torch.testing.assert_close(got[:4].mean(), torch.tensor(1.0))
    assert got[0] > got[3] > got[1] > got[2] and got[4] == 0
    nobody = TokenStats(**{**vars(stats), "taught": torch.zeros(1, 5, dtype=torch.bool)})
    assert (factors(nobody) == 0).all()


def test_who_goes_where(make_trainer):
    trainer = scripted_trainer(make_trainer, "srpo", MIXED, WRONG)
    batch = batch_of(trainer)
    order = batch["distillation"].index.argsort()
    distilled, advantage = batch["distillation"].mask.any(1)[order], batch["advantages"][order]
    assert distilled.tolist() == [True, False, True, False, *[False] * 4]
    assert (advantage[[0, 2]] == 0).all() and (advantage[[1, 3]] > 0).all()
    assert batch["distillation"].counts.tokens > batch["distillation"].counts.distilled_tokens > 0


def test_all_right_and_all_wrong(make_trainer):
    """No sibling to read, and no advantage: nothing is left."""
    trainer = scripted_trainer(make_trainer, "srpo", WRONG, RIGHT)
    assert views_of(trainer)[:4] == [{}] * 4
    _, gradient = gradients(scripted_trainer(make_trainer, "srpo", WRONG, RIGHT))
    assert norm(gradient) == 0


def test_of_the_config():
    config = OPSDConfig("out", method="srpo", bf16=False, num_generations=4)
    assert (config.distillation_reduction, config.distillation_is_clip) == ("joint_token_mean", 2.0)
