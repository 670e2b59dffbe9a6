# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""RLRT: the teacher in reverse, on right rollouts alone."""

import math

import pytest
import torch

from method_batches import MIXED, RIGHT, WRONG, scripted_trainer, views_of
from method_cases import CLOSE, B, C, advantages, signals


RIGHT_ROWS = torch.tensor([[1.0], [0.0], [1.0], [0.0]], dtype=torch.float64)


def test_advantages():
    batch = signals("rlrt", ["privileged"], success=RIGHT_ROWS)
    got = advantages("rlrt", batch)
    for b in range(B):
        for c in range(C):
            verifier = batch.advantages[b, 0].item()
            against = (batch.student_logps[b, c] - batch.teacher_logps[0, b, c]).item()
            factor = 1.0
            if batch.mask[b, c] and RIGHT_ROWS[b, 0]:
                factor = 0.5 + 0.5 * min(max(math.exp(math.copysign(1, verifier) * against), 0.8), 1.2)
            assert got[b, c].item() == pytest.approx(verifier * factor, abs=1e-12)


def test_it_is_rlsd_in_reverse():
    batch = signals("rlrt", ["privileged"], success=torch.ones(B, 1, dtype=torch.float64))
    swapped = {"teacher_logps": batch.student_logps.unsqueeze(0), "student_logps": batch.teacher_logps[0]}
    other = advantages("rlsd", signals("rlsd", ["privileged"], **swapped))
    torch.testing.assert_close(advantages("rlrt", batch), other, **CLOSE)


def test_all_wrong_and_identical_contexts_leave_grpo():
    batch = signals("rlrt", ["privileged"], success=torch.zeros(B, 1, dtype=torch.float64))
    alike = signals("rlrt", ["privileged"], teacher_logps=batch.student_logps.unsqueeze(0), success=RIGHT_ROWS)
    for one in (batch, alike):
        torch.testing.assert_close(advantages("rlrt", one), one.advantages.expand(B, C), **CLOSE)


def test_a_right_rollout_reads_another_one(make_trainer):
    views = views_of(scripted_trainer(make_trainer, "rlrt", MIXED, RIGHT))
    assert views[:4] == [{}, {"privileged": "2"}, {}, {"privileged": "it is 2"}]
    assert all(views[4:]), "all right: each reads a sibling"
    views = views_of(scripted_trainer(make_trainer, "rlrt", ["2", "no", "7", "8"], WRONG))
    assert views == [{}] * 8, "the only right one has no sibling"
