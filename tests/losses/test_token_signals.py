# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Statistics of sampled tokens at their edges; tests/methods has them in use."""

import math

import torch

from trl_opsd.losses import contrast, log_mean, mean_over, quantile, self_normalized


def test_log_mean_of_those_that_teach():
    logps = torch.tensor([[[-1.0, -1.0, -1.0]], [[-3.0, -3.0, -3.0]]])
    taught = torch.tensor([[[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]])
    mean = math.log((math.exp(-1) + math.exp(-3)) / 2)
    torch.testing.assert_close(log_mean(logps, taught), torch.tensor([[mean, -1.0, 0.0]]))


def test_contrast_needs_both_sides():
    logps, taught = torch.tensor([[[-1.0, -1.0]], [[-3.0, -3.0]]]), torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]])
    torch.testing.assert_close(contrast(logps, taught, [0], [1]), torch.tensor([[2.0, 0.0]]))
    assert (contrast(logps, taught, [0], []) == 0).all() and (contrast(logps, taught, [], []) == 0).all()


def test_a_mean_over_some():
    tokens, values = torch.tensor([[1, 1, 1, 0]]), torch.tensor([[3.0, 5.0, 7.0, 100.0]])
    chosen = torch.tensor([[1, 1, 0, 0]])
    assert (mean_over(chosen, tokens) * values).sum() / tokens.sum() == 4.0
    assert (mean_over(torch.zeros_like(tokens), tokens) == 0).all()


def test_a_quantile_of_some_and_of_none():
    values = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert (quantile(values, 0.0), quantile(values, 0.5), quantile(values, 1.0)) == (1.0, 2.5, 4.0)
    assert quantile(values[:1], 0.1) == 4.0 and quantile(values[:0], 0.1) == 0.0


def test_self_normalized_weights_have_the_mean_one():
    weights, counted = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([True, True, False])
    assert self_normalized(weights, counted).tolist() == [0.5, 1.5, 0.0]
    assert self_normalized(weights, torch.zeros(3, dtype=torch.bool)).tolist() == [0.0] * 3
