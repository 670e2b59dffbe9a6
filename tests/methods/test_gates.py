# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""GATES: a gate of agreement, a bounded log-ratio."""

import pytest
import torch

from method_batches import scripted_trainer, views_of
from method_cases import CLOSE, B, C, advantages, signals
from trl_opsd.privileged import build_condition


@pytest.mark.parametrize("bound", [1.0, 0.2])
def test_advantages(bound):
    batch = signals("gates", ["privileged"], options={"bound": bound}, scale=torch.tensor(0.6, dtype=torch.float64))
    got = advantages("gates", batch)
    for b in range(B):
        for c in range(C):
            gap = (batch.teacher_logps[0, b, c] - batch.student_logps[b, c]).item() * batch.mask[b, c].item()
            wanted = batch.advantages[b, 0].item() + 0.6 * min(max(gap, -bound), bound)
            assert got[b, c].item() == pytest.approx(wanted, abs=1e-12)


def test_identical_contexts_and_no_view_leave_the_verifier():
    batch, nothing = signals("gates", ["privileged"]), torch.zeros(1, B, C, dtype=torch.float64)
    alike = signals("gates", ["privileged"], teacher_logps=batch.student_logps.unsqueeze(0))
    for one in (alike, signals("gates", ["privileged"], shares=nothing, mask=nothing[0])):
        torch.testing.assert_close(advantages("gates", one), one.advantages.expand(B, C), **CLOSE)


AGREED, SPLIT, TIED = ["it is 3", "so 3", "4", "no"], ["it is 3", "4", "5", "no"], ["3", "so 3", "4", "is 4"]


@pytest.mark.parametrize(("group", "taught"), [(AGREED, True), (SPLIT, False), (TIED, False), (["no"] * 4, False)])
def test_the_gate(make_trainer, group, taught):
    """Agreement on a wrong answer opens it, too: no reward is asked."""
    options = {"reward_funcs": None, "policy_weight": 0.0}
    views = views_of(scripted_trainer(make_trainer, "gates", group, ["5", "so 5", "is 5", "the 5"], **options))
    assert [bool(one) for one in views] == [taught] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("group", "taught"), [(["1,000", "so 1000", "4", "no"], True), (["3", "no", "nor", "x"], False)]
)
def test_spellings_are_one_answer_and_one_vote_is_none(make_trainer, group, taught):
    options = {"reward_funcs": None, "policy_weight": 0.0}
    options["privileged_source"] = {"when": {"condition": {"consensus": 0.25}, "source": "column"}}
    views = views_of(scripted_trainer(make_trainer, "gates", group, ["5", "so 5", "is 5", "the 5"], **options))
    assert [bool(one) for one in views] == [taught] * 4 + [True] * 4


def test_a_share_is_checked():
    with pytest.raises(ValueError, match="`least_share` must be a finite number above 0"):
        build_condition({"consensus": 0.0})
