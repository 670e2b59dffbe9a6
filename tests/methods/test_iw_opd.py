# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""IW-OPD: weights that fall along a completion with what the two sides have disagreed about."""

import pytest
import torch

from method_cases import CLOSE, B, C, advantages, signals


@pytest.mark.parametrize("gamma", [0.5, 2.0, 0.0])
def test_advantages(gamma):
    batch = signals("iw_opd", ["privileged"], options={"gamma": gamma}, scale=torch.tensor(0.9, dtype=torch.float64))
    got = advantages("iw_opd", batch)
    for b in range(B):
        gaps = [(batch.teacher_logps[0, b, c] - batch.student_logps[b, c]).item() * batch.mask[b, c].item()
                for c in range(C)]  # fmt: skip
        total, before = sum(map(abs, gaps)), 0.0
        for c, gap in enumerate(gaps):
            weight = 1 + gamma * (1 - before / total)
            assert got[b, c].item() == pytest.approx(batch.advantages[b, 0].item() + 0.9 * weight * gap, abs=1e-12)
            before += abs(gap)


def test_without_gamma_it_is_the_sampled_token():
    batch = signals("iw_opd", ["privileged"], options={"gamma": 0.0})
    torch.testing.assert_close(advantages("iw_opd", batch), batch.advantages + batch.scale * batch.gap, **CLOSE)


def test_weights_fall_from_one_and_a_half_to_one():
    even = signals("iw_opd", ["privileged"], teacher_logps=torch.full((1, B, C), -1.0, dtype=torch.float64),
                   student_logps=torch.zeros(B, C, dtype=torch.float64))  # fmt: skip
    weights = (even.advantages - advantages("iw_opd", even))[2]
    torch.testing.assert_close(weights, 1.5 - 0.5 * torch.arange(C, dtype=torch.float64) / C, **CLOSE)


def test_identical_contexts_and_no_view_leave_the_verifier():
    batch, nothing = signals("iw_opd", ["privileged"]), torch.zeros(1, B, C, dtype=torch.float64)
    alike = signals("iw_opd", ["privileged"], teacher_logps=batch.student_logps.unsqueeze(0))
    for one in (alike, signals("iw_opd", ["privileged"], shares=nothing, mask=nothing[0])):
        torch.testing.assert_close(advantages("iw_opd", one), one.advantages.expand(B, C), **CLOSE)
