# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""CREDIT: what only the row's own context gives."""

import math

import pytest
import torch

from method_batches import MIXED, WRONG, scripted_trainer, views_of
from method_cases import CLOSE, B, C, advantages, signals


VIEWS = ["other-1", "other-2", "own"]


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_advantages(share):
    batch = signals("credit", VIEWS, options={"share": share}, scale=torch.tensor(0.7, dtype=torch.float64))
    got = advantages("credit", batch)
    for b in range(B):
        for c in range(C):
            first, second, own = batch.teacher_logps[:, b, c].tolist()
            student, extra = batch.student_logps[b, c].item(), 0.0
            if batch.mask[b, c]:
                generic = math.log((math.exp(first) + math.exp(second)) / 2) - student
                extra = own - student - share * generic
            assert got[b, c].item() == pytest.approx(batch.advantages[b, 0].item() + 0.7 * extra, abs=1e-12)


@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_several_own_contexts_are_one_by_their_mean_probability(share):
    """Both in the gap and in the contrast; at a token that one of them does not teach, the other stands alone."""
    views = ["other", "own-1", "own-2"]
    batch = signals("credit", views, options={"share": share})
    shares = batch.shares.clone()
    shares[1, 2, 3] = 0
    batch = signals("credit", views, options={"share": share}, shares=shares)
    got = advantages("credit", batch)
    for b in range(B):
        for c in range(C):
            other, *own = batch.teacher_logps[:, b, c].tolist()
            own = own[1:] if (b, c) == (2, 3) else own
            student, extra = batch.student_logps[b, c].item(), 0.0
            if batch.mask[b, c]:
                delta = math.log(sum(map(math.exp, own)) / len(own)) - student
                extra = delta - share * (other - student)
            assert got[b, c].item() == pytest.approx(batch.advantages[b, 0].item() + extra, abs=1e-12)


def test_a_context_that_others_share_gives_nothing():
    batch = signals("credit", VIEWS)
    alike = signals("credit", VIEWS, teacher_logps=batch.teacher_logps[:1].expand(3, B, C))
    torch.testing.assert_close(advantages("credit", alike), batch.advantages.expand(B, C), **CLOSE)


@pytest.mark.parametrize("views", [["own"], ["other-1", "other-2"], ["privileged"]])
def test_one_side_alone_leaves_grpo(views):
    batch = signals("credit", views, options={"share": 0.5})
    torch.testing.assert_close(advantages("credit", batch), batch.advantages.expand(B, C), **CLOSE)


def test_views(make_trainer):
    source = {"all_of": [{"column": {"name": "own"}}, {"other_row": {"name": "other", "count": 1}}]}
    views = views_of(scripted_trainer(make_trainer, "credit", MIXED, WRONG, privileged_source=source))
    assert views[:4] == [{"own": "1 + 1 = 2", "other": "2 + 3 = 5"}] * 4
    assert views[4:] == [{"own": "2 + 3 = 5", "other": "1 + 1 = 2"}] * 4
