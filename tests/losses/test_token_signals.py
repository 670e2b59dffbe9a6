# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Pieces of advantages at their edges; tests/methods has them in use."""

import math

import pytest
import torch

from trl_opsd.losses import contrast, keep_sign, log_mean, mean_over, top_share


def test_log_mean_of_those_that_teach():
    logps = torch.tensor([[[-1.0, -1.0, -1.0]], [[-3.0, -3.0, -3.0]]])
    taught = torch.tensor([[[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]])
    mean = math.log((math.exp(-1) + math.exp(-3)) / 2)
    torch.testing.assert_close(log_mean(logps, taught), torch.tensor([[mean, -1.0, 0.0]]))


def test_contrast_needs_both_sides():
    logps, taught = torch.tensor([[[-1.0, -1.0]], [[-3.0, -3.0]]]), torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]])
    torch.testing.assert_close(contrast(logps, taught, [0], [1]), torch.tensor([[2.0, 0.0]]))
    assert (contrast(logps, taught, [0], []) == 0).all() and (contrast(logps, taught, [], []) == 0).all()


def test_keep_sign():
    values, verifier = torch.tensor([[2.0, -2.0, 1.0]] * 3), torch.tensor([[0.5], [-0.5], [0.0]])
    assert keep_sign(values, verifier).tolist() == [[2.0, 0.0, 1.0], [0.0, -2.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_mean_over_some():
    tokens, values = torch.tensor([[1, 1, 1, 0]]), torch.tensor([[3.0, 5.0, 7.0, 100.0]])
    chosen = torch.tensor([[1, 1, 0, 0]])
    assert (mean_over(chosen, tokens) * values).sum() / tokens.sum() == 4.0
    assert (mean_over(torch.zeros_like(tokens), tokens) == 0).all()


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 0), (0.1, 3), (0.11, 4), (1.0, 30)])
def test_top_share(share, wanted):
    values, mask = torch.arange(40.0).view(2, 20), torch.ones(2, 20)
    mask[1, 10:] = 0
    chosen = top_share(values, mask, share)
    assert int(chosen.sum()) == wanted and (wanted == 0 or values[chosen > 0].min() == 30 - wanted)
    assert (top_share(values, torch.zeros(2, 20), share) == 0).all()
