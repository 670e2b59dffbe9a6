# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""SDPG: GRPO, a small reverse KL to the teacher, one to the reference; the gate."""

import torch

from method_batches import MIXED, RIGHT, WRONG, gradients, norm, scripted_trainer, views_of
from method_cases import CLOSE, check_loss
from trl_opsd import OPSDConfig


GATED = {"when": {"condition": "above_group_mean", "source": "column"}}


def test_loss():
    def reverse_kl(log_p, log_qs, labels):
        return (log_p.exp() * (log_p - log_qs[0])).sum(-1)

    check_loss("sdpg", ["privileged"], reverse_kl)


def test_weights():
    config = OPSDConfig("out", method="sdpg", bf16=False, num_generations=4)
    assert (config.distillation_weight, config.beta, config.use_bias_correction_kl) == (0.001, 0.001, True)


def test_half_a_squared_logarithm_and_weighted_k3_have_one_mean_gradient():
    """The paper's reference term and TRL's: both are the reverse KL's gradient in expectation (identity 4)."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(9, generator=draw, dtype=torch.float64, requires_grad=True)
    log_ref = torch.randn(9, generator=draw, dtype=torch.float64).log_softmax(-1)
    log_p = logits.log_softmax(-1)
    p, ratio = log_p.detach().exp(), (log_p - log_p.detach()).exp()
    gap = log_ref - log_p
    reverse = (log_p.exp() * -gap).sum()
    for estimate in (0.5 * gap.square(), ratio * (gap.exp() - gap - 1)):
        (one,) = torch.autograd.grad((p * estimate).sum(), logits, retain_graph=True)
        (other,) = torch.autograd.grad(reverse, logits, retain_graph=True)
        torch.testing.assert_close(one, other, **CLOSE)


def test_the_gate_takes_positive_advantages(make_trainer):
    trainer = scripted_trainer(make_trainer, "sdpg", MIXED, WRONG, privileged_source=GATED, beta=0.0)
    assert [bool(views) for views in views_of(trainer)] == [False, True, False, True, *[False] * 4]


def test_all_right_or_all_wrong_is_above_no_mean(make_trainer):
    """No view and no advantage: but for the reference nothing is left."""
    _, gradient = gradients(scripted_trainer(make_trainer, "sdpg", WRONG, RIGHT, privileged_source=GATED, beta=0.0))
    assert norm(gradient) == 0
