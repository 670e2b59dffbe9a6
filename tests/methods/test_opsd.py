# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""OPSD: forward KL with the point-wise clip, the early variant and the sampled token."""

import math

import torch

from method_cases import check_loss
from trl_opsd import OPSDConfig


def clipped(log_p, log_qs, labels):
    (log_q,) = log_qs
    return (log_q.exp() * (log_q - log_p)).clamp(max=0.05).sum(-1)


def test_loss():
    check_loss("opsd", ["privileged"], clipped)


def test_early_variant():
    def jsd(log_p, log_qs, labels):
        (log_q,) = log_qs
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        both = log_q.exp() * (log_q - log_m) + log_p.exp() * (log_p - log_m)
        return 0.5 * both.sum(-1)

    check_loss("opsd", ["privileged"], jsd, distillation_alpha=0.5, distillation_entry_clip=None)


def test_sampled_token_is_in_the_config():
    config = OPSDConfig(
        "out", method="opsd", bf16=False, num_generations=1, distillation_mode="sampled_token", distillation_alpha=1.0,
        distillation_entry_clip=None,
    )  # fmt: skip
    assert (config.distillation_mode, config.teacher_model_kind) == ("sampled_token", "base")
