# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Masks, token weights and shares of views."""

import pytest
import torch

from trl_opsd.batches.counts import Counts
from trl_opsd.batches.distillation_batch import distillation_mask, relative_positions, view_shares


def test_distillation_mask_counts_model_tokens():
    loss_mask = torch.tensor(
        [
            [1, 1, 1, 1, 1, 0],  # padding at the end
            [1, 0, 0, 1, 1, 1],  # a tool's tokens between the model's
            [0, 0, 0, 0, 0, 0],  # nothing
            [1, 0, 0, 0, 0, 0],  # fewer than are skipped
            [1, 1, 1, 1, 1, 1],  # without a view
        ]
    )
    taught = torch.tensor([True, True, True, True, False]).unsqueeze(1).expand(5, 6).clone()
    taught[0, 4] = False  # beyond what the view may teach
    want = torch.tensor(
        [
            [0, 0, 1, 1, 0, 0],
            [0, 0, 0, 0, 1, 1],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ]
    )
    got = distillation_mask(loss_mask, taught, 2)
    assert torch.equal(got, want) and got.dtype == loss_mask.dtype
    assert torch.equal(distillation_mask(loss_mask, taught, 0), loss_mask * taught.long())
    assert torch.equal(distillation_mask(loss_mask.float(), taught, 2), want.float())
    assert not distillation_mask(loss_mask, taught, 6).any()


def token_weights(mask, reduction, tokens, rows):
    counts = Counts(distilled_tokens=tokens, distilled_rows=rows, tokens=tokens, rows=rows)
    return counts.token_weights(mask, reduction, 1.0)


MASK = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])


@pytest.mark.parametrize("reduction", ["token_mean", "joint_token_mean"])
def test_token_mean(reduction):
    weights = token_weights(MASK, reduction, torch.tensor(4.0), torch.tensor(2.0))
    torch.testing.assert_close(weights, MASK / 4)
    # The counts are those of all ranks and micro-batches
    torch.testing.assert_close(token_weights(MASK, reduction, torch.tensor(10.0), torch.tensor(3.0)), MASK / 10)


def test_sequence_mean():
    weights = token_weights(MASK, "sequence_mean", torch.tensor(4.0), torch.tensor(2.0))
    torch.testing.assert_close(weights, MASK * torch.tensor([[1 / 6], [0.0], [1 / 2]]))
    losses = torch.arange(12.0).view(3, 4)
    torch.testing.assert_close((losses * weights).sum(), torch.tensor(((0 + 1 + 3) / 3 + 9) / 2))
    weights = token_weights(MASK, "sequence_mean", torch.tensor(4.0), torch.tensor(5.0))
    torch.testing.assert_close(weights, MASK * torch.tensor([[1 / 15], [0.0], [1 / 5]]))


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_rows_all_masked(reduction):
    weights = token_weights(torch.zeros(3, 4), reduction, torch.tensor(0.0), torch.tensor(0.0))
    assert torch.equal(weights, torch.zeros(3, 4))


def test_relative_positions_count_model_tokens():
    loss_mask = torch.tensor([[1, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    got = relative_positions(loss_mask)
    torch.testing.assert_close(got[0, loss_mask[0] > 0], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    assert got[1, 2] == 0.5 and got.isfinite().all()


def test_view_shares():
    weights = torch.tensor([[1.0, 2.0, 0.0, 0.0, 1e-30], [3.0, 0.0, 0.0, 0.5, 0.0]])
    want = torch.tensor([[0.25, 1.0, 0.0, 0.0, 1.0], [0.75, 0.0, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(view_shares(weights), want)
    torch.testing.assert_close(view_shares(weights[:1]), torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0]]))
