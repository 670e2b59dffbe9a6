# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""EGRSD: the verifier's direction, the ratio's size, the teacher's confidence."""

import math

import pytest
import torch

from method_cases import CLOSE, B, C, advantages, signals


def test_advantages():
    batch = signals("egrsd", ["a", "b"])
    got = advantages("egrsd", batch)
    for b in range(B):
        for c in range(C):
            verifier, factor = batch.advantages[b, 0].item(), 1.0
            if batch.mask[b, c]:
                gap = (batch.teacher_logps[:, b, c].mean() - batch.student_logps[b, c]).item()
                ratio = min(max(math.exp(math.copysign(1, verifier) * gap), 0.8), 1.2)
                factor = ratio * (0.5 + 0.5 * math.exp(-batch.teacher_entropy[:, b, c].mean().item()))
            assert got[b, c].item() == pytest.approx(verifier * factor, abs=1e-12)


def test_a_sure_teacher_is_rlsd():
    sure = {"teacher_entropy": torch.zeros(1, B, C, dtype=torch.float64)}
    wanted = advantages("rlsd", signals("rlsd", ["privileged"], options={"share": 1.0}))
    torch.testing.assert_close(advantages("egrsd", signals("egrsd", ["privileged"], **sure)), wanted, **CLOSE)


def test_bounds():
    unsure = {"teacher_entropy": torch.full((1, B, C), 40.0, dtype=torch.float64)}
    batch = signals("egrsd", ["privileged"])
    alike = {"teacher_logps": batch.student_logps.unsqueeze(0)}
    got = advantages("egrsd", signals("egrsd", ["privileged"], **unsure, **alike))
    wanted = batch.advantages * torch.where(batch.mask > 0, 0.5, 1.0)
    torch.testing.assert_close(got, wanted, **CLOSE)
    assert torch.equal(advantages("egrsd", batch).sign(), batch.advantages.sign().expand(B, C))


def test_no_view_leaves_grpo():
    nothing = torch.zeros(1, B, C, dtype=torch.float64)
    batch = signals("egrsd", ["privileged"], shares=nothing, mask=nothing[0])
    torch.testing.assert_close(advantages("egrsd", batch), batch.advantages.expand(B, C), **CLOSE)
