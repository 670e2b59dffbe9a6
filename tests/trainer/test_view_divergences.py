# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`distillation_view_divergences`: rollouts whose views are named by success get the divergence of their name."""

import pytest
import torch

from batches import batch_of
from method_batches import MIXED, WRONG
from scripted import right, sums, writing


RIGHT_ONES = {"when": {"condition": "succeeded", "source": {"column": {"name": "right"}}}}
WRONG_ONES = {"when": {"condition": "failed", "source": {"column": {"name": "wrong"}}}}
BOTH = {"all_of": [RIGHT_ONES, WRONG_ONES]}
BY_VIEW = {"distillation_view_divergences": {"wrong": "reverse_kl"}}


def gradient(make_trainer, source, texts=(MIXED, WRONG), **options):
    """The gradient of the sum over the distilled tokens, and their number."""
    trainer = make_trainer(
        dataset=sums(privileged_context=["1 + 1 = 2", "2 + 3 = 5"]), reward_funcs=right, rollout_func=writing(*texts),
        privileged_source=source, policy_weight=0.0, num_generations=4, per_device_train_batch_size=8,
        max_completion_length=200, shuffle_dataset=False, **options,
    )  # fmt: skip
    batch = batch_of(trainer)
    tokens = batch["distillation"].counts.distilled_tokens.item()
    trainer.compute_loss(trainer.model, batch).backward()
    found = {name: one.grad * tokens for name, one in trainer.model.named_parameters() if one.grad is not None}
    return found, tokens


@pytest.mark.parametrize("mode", [{}, {"distillation_mode": "topk_logits", "distillation_topk": 8}])
def test_each_row_has_the_gradient_of_a_run_with_its_divergence(make_trainer, mode):
    """Of sums over tokens, so that the rows of both runs together are those of the one."""
    ours, tokens = gradient(make_trainer, BOTH, **BY_VIEW, **mode)
    forward, of_right = gradient(make_trainer, RIGHT_ONES, distillation_alpha=0.0, **mode)
    reverse, of_wrong = gradient(make_trainer, WRONG_ONES, distillation_alpha=1.0, **mode)
    assert tokens == of_right + of_wrong and min(of_right, of_wrong) > 0
    for name, one in ours.items():
        torch.testing.assert_close(one, forward[name] + reverse[name], rtol=1e-4, atol=1e-5)
    # Neither divergence alone would do
    for alpha in (0.0, 1.0):
        other, _ = gradient(make_trainer, BOTH, distillation_alpha=alpha, **mode)
        assert any((one - other[name]).abs().max() > 1e-2 for name, one in ours.items())


@pytest.mark.parametrize(("source", "alpha"), [(RIGHT_ONES, 0.0), (WRONG_ONES, 1.0)], ids=["right", "wrong"])
def test_rows_of_one_kind_to_the_last_bit(make_trainer, source, alpha):
    ours, _ = gradient(make_trainer, source, **BY_VIEW)
    alone, _ = gradient(make_trainer, source, distillation_alpha=alpha)
    assert all(torch.equal(one, alone[name]) for name, one in ours.items())
