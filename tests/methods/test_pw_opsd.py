# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""PW-OPSD: weights by place."""

import math

import pytest
import torch

from method_cases import N, check_loss
from trl_opsd import OPSDConfig
from trl_opsd.batches.distillation_batch import relative_positions


def clipped(log_p, log_q):
    return (log_q.exp() * (log_q - log_p)).clamp(max=0.05).sum(-1)


@pytest.mark.parametrize("options", [{}, {"least": 0.1, "middle": 0.5, "softness": 0.02}])
def test_loss(options):
    w, tau, s = (options.get(name, value) for name, value in (("least", 0.25), ("middle", 0.3), ("softness", 0.1)))

    def formula(log_p, log_qs, labels):
        weights = [w + (1 - w) / (1 + math.exp(-((i + 0.5) / N - tau) / s)) for i in range(N)]
        return torch.tensor(weights, dtype=torch.float64) * clipped(log_p, log_qs[0])

    check_loss("pw_opsd", ["privileged"], formula, method_options=options)


def test_least_one_is_opsd():
    check_loss("pw_opsd", ["a"], lambda log_p, log_qs, _: clipped(log_p, log_qs[0]), method_options={"least": 1.0})


def test_the_place_is_that_in_the_own_answer():
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 0, 0, 0]])
    assert relative_positions(mask)[0][mask[0] == 1].tolist() == [0.125, 0.375, 0.625, 0.875]
    assert relative_positions(mask)[1][:2].tolist() == [0.25, 0.75]


def test_mean_of_each_answer():
    config = OPSDConfig("unused", method="pw_opsd", bf16=False, num_generations=1)
    assert (config.distillation_reduction, config.distillation_entry_clip) == ("sequence_mean", 0.05)
