# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""RLSD: the verifier's direction, the teacher's size."""

import math

import pytest
import torch

from method_cases import CLOSE, B, C, advantages, signals


@pytest.mark.parametrize("step", [0, 10, 50, 80])
def test_advantages(step):
    batch = signals("rlsd", ["privileged"], step=step)
    share = 0.5 * max(0, 1 - step / 50)
    got = advantages("rlsd", batch)
    for b in range(B):
        for c in range(C):
            verifier = batch.advantages[b, 0].item()
            gap = (batch.teacher_logps[0, b, c] - batch.student_logps[b, c]).item()
            factor = min(max(math.exp(math.copysign(1, verifier) * gap), 0.8), 1.2) if batch.mask[b, c] else 1.0
            assert got[b, c].item() == pytest.approx(verifier * ((1 - share) + share * factor), abs=1e-12)


def test_the_sign_is_the_verifiers():
    batch = signals("rlsd", ["privileged"], seed=3)
    assert torch.equal(advantages("rlsd", batch).sign(), batch.advantages.sign().expand(B, C))


def test_identical_contexts_leave_grpo():
    batch = signals("rlsd", ["privileged"])
    alike = signals("rlsd", ["privileged"], teacher_logps=batch.student_logps.unsqueeze(0))
    torch.testing.assert_close(advantages("rlsd", alike), alike.advantages.expand(B, C), **CLOSE)
