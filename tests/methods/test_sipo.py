# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""SIPO: the verifier's advantage, and what a reference makes likelier and a mistake does not."""

import pytest
import torch

from batches import batch_of
from method_cases import CLOSE, B, C, advantages, signals
from scripted import right, sums, writing


VIEWS = ["reference", "mistake"]


@pytest.mark.parametrize("bound", [0.5, 100.0])
def test_advantages(bound):
    batch = signals("sipo", VIEWS, options={"bound": bound}, scale=torch.tensor(1.5, dtype=torch.float64))
    got = advantages("sipo", batch)
    for b in range(B):
        for c in range(C):
            contrast = (batch.teacher_logps[0, b, c] - batch.teacher_logps[1, b, c]).item() * batch.mask[b, c].item()
            expected = batch.advantages[b, 0].item() + 1.5 * min(max(contrast, -bound), bound)
            assert got[b, c].item() == pytest.approx(expected, abs=1e-12)


def test_identical_contexts_leave_grpo():
    batch = signals("sipo", VIEWS)
    alike = signals("sipo", VIEWS, teacher_logps=batch.teacher_logps[:1].expand(2, B, C))
    torch.testing.assert_close(advantages("sipo", alike), alike.advantages.expand(B, C), **CLOSE)


def test_the_order_of_the_views_does_not_matter():
    batch = signals("sipo", VIEWS)
    turned = signals("sipo", VIEWS[::-1], teacher_logps=batch.teacher_logps.flip(0))
    torch.testing.assert_close(advantages("sipo", turned), advantages("sipo", batch), **CLOSE)


@pytest.mark.parametrize("views", [["reference"], ["mistake"]])
def test_one_view_alone_leaves_grpo(views):
    batch = signals("sipo", views)
    assert torch.equal(advantages("sipo", batch), batch.advantages.expand(B, C))


def test_rows_without_a_mistake_keep_the_verifiers_advantage():
    batch = signals("sipo", VIEWS)
    shares = batch.shares.clone()
    shares[1, :2] = 0
    got = advantages("sipo", signals("sipo", VIEWS, shares=shares))
    assert torch.equal(got[:2], batch.advantages.expand(B, C)[:2])
    assert torch.equal(got[2:], advantages("sipo", batch)[2:])


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        ((["It is 2", "It is 3"], ["2 + 3 = 5", "Hm, 6"]), [["reference", "mistake"], []] * 2),
        ((["It is 2"] * 2, ["It is 5"] * 2), [[]] * 4),
        ((["It is 3"] * 2, ["It is 7"] * 2), [["reference", "mistake"]] * 4),
    ],
    ids=["mixed", "all right", "all wrong"],
)
def test_in_the_trainer(make_trainer, texts, names):
    trainer = make_trainer(
        method="sipo", dataset=sums(privileged_context=["two", "five"]), reward_funcs=right, num_generations=2,
        shuffle_dataset=False, max_completion_length=40, rollout_func=writing(*texts),
    )  # fmt: skip
    batch = batch_of(trainer)
    assert [[view.name for view in views] for views in trainer.collected.views] == names
    trainer.compute_loss(trainer.model, batch).backward()
    assert all(torch.isfinite(param.grad).all() for param in trainer.model.parameters() if param.grad is not None)
