# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Skill-SD: k3 with its importance ratio is the sampled token's reverse KL."""

import pytest
import torch

from method_batches import MIXED, WRONG, gradients, norm, scripted_trainer
from method_cases import CLOSE, C, random, signals
from trl_opsd import OPSDConfig
from trl_opsd.privileged import Skills, build_source


def k3(log_p, log_q):
    """exp(-l) - 1 + l with l = log p - log q."""
    return (log_q - log_p).exp() - 1 + log_p - log_q


def distributions(size=11):
    draw = random(0)
    logits = torch.randn(size, generator=draw, dtype=torch.float64, requires_grad=True)
    old, log_q = torch.randn(2, size, generator=draw, dtype=torch.float64).log_softmax(-1)
    return logits, logits.log_softmax(-1), old, log_q


def gradient(value, logits):
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def test_gradient_of_each_token():
    """The paper's loss of a token, and TRL's -ratio A with A = -l held constant, off the policy too."""
    logits, log_p, old, log_q = distributions()
    for token in range(len(log_p)):
        ratio = (log_p[token] - old[token]).exp()
        paper = ratio * k3(log_p[token], log_q[token])
        sampled = {"student_logps": log_p.detach()[token].expand(4, C), "teacher_logps": log_q[token].expand(1, 4, C)}
        ours = -ratio * signals("skill_sd", ["privileged"], **sampled).gap[1, 1]
        torch.testing.assert_close(gradient(paper, logits), gradient(ours, logits), **CLOSE)


def test_identity_4():
    """In expectation it is the reverse KL's gradient; without the ratio it would be the forward KL's."""
    logits, log_p, _, log_q = distributions()
    p, ratio = log_p.detach().exp(), (log_p - log_p.detach()).exp()
    reverse, forward = (log_p.exp() * (log_p - log_q)).sum(), (log_q.exp() * (log_q - log_p)).sum()
    with_ratio, without = (p * ratio * k3(log_p, log_q)).sum(), (p * k3(log_p, log_q)).sum()
    torch.testing.assert_close(with_ratio, reverse, **CLOSE)
    torch.testing.assert_close(gradient(with_ratio, logits), gradient(reverse, logits), **CLOSE)
    torch.testing.assert_close(gradient(without, logits), gradient(forward, logits), **CLOSE)


def test_the_advantage_is_minus_l():
    batch = signals("skill_sd", ["privileged"])
    ell = batch.student_logps - batch.teacher_logps[0]
    torch.testing.assert_close(batch.gap, -ell * batch.mask, **CLOSE)
    assert batch.gap.shape == (4, C)


def test_source_and_weight():
    config = OPSDConfig("out", method="skill_sd", bf16=False, num_generations=4)
    assert isinstance(build_source(config.privileged_source), Skills)
    assert (config.distillation_weight, config.teacher_model_kind, config.distillation_mode) == (
        0.001, "live", "sampled_token",
    )  # fmt: skip


@pytest.mark.parametrize("texts", [[MIXED, WRONG], [WRONG, WRONG]], ids=["mixed", "all wrong"])
def test_no_skill_leaves_grpo(make_trainer, texts):
    skills = {"skills": {"author": "test_skill_sd.nothing"}}
    ours = gradients(scripted_trainer(make_trainer, "skill_sd", *texts, privileged_source=skills))
    theirs = gradients(scripted_trainer(make_trainer, "skill_sd", *texts, distillation_weight=0.0, policy_weight=1.0))
    for name, one in ours[1].items():
        torch.testing.assert_close(one, theirs[1][name])
    assert (norm(theirs[1]) > 0) == (MIXED in texts)


def nothing(prompts, rollouts):
    return ["I can't say."] * len(prompts)
