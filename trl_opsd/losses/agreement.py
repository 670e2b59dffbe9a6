# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Weights of tokens from all tokens of a micro-batch. An empty micro-batch has none.

Legend: N tokens, K views; y the sampled token.
"""

import torch


def quantile(values: torch.Tensor, share: float) -> torch.Tensor:
    """The value that a share of `values`, `(N,)`, does not exceed, 0-d; 0 of none."""
    return values.quantile(share) if values.numel() else values.new_zeros(())


def spread(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """
    Variance over the views that are known, `(N,)`; 0 of fewer than two.

    Args:
        values (`torch.Tensor` of shape `(K, N)`): One value of each view.
        known (`torch.Tensor` of shape `(K, N)`): Which count.
    """
    count = known.sum(0).clamp(min=1)
    mean = (values * known).sum(0) / count
    return ((values - mean) ** 2 * known).sum(0) / count


def token_agreement(logps: torch.Tensor, taught: torch.Tensor, gamma: float) -> torch.Tensor:
    """
    max(1 / (1 + gamma d), 0.01), of shape `(N,)`, d = min(var_k log q_k(y) / its 95 % quantile, 10) (UniSD,
    huggingface.co/papers/2605.06597).

    Args:
        logps (`torch.Tensor` of shape `(K, N)`): log q_k(y).
        taught (`torch.Tensor` of shape `(K, N)`): Whether a view teaches the token.
        gamma (`float`): How much disagreement costs.
    """
    distance = spread(logps, taught)
    high = quantile(distance, 0.95)
    scaled = torch.where(high > 0, distance / high, torch.zeros_like(distance)).clamp(max=10.0)
    return (1 / (1 + gamma * scaled)).clamp(min=0.01)


def sequence_agreement(logps: torch.Tensor, taught: torch.Tensor, rows: torch.Tensor, gamma: float) -> torch.Tensor:
    """
    max(exp(-gamma var_k mean_t log q_k(y_t)), 1e-6), of shape `(N,)`, one value for all tokens of a row (UniSD).

    Args:
        logps (`torch.Tensor` of shape `(K, N)`): log q_k(y).
        taught (`torch.Tensor` of shape `(K, N)`): Whether a view teaches the token.
        rows (`torch.Tensor` of shape `(N,)`): Row of each token.
        gamma (`float`): How much disagreement costs.
    """
    _, which = rows.unique(return_inverse=True)
    many = int(which.max()) + 1 if which.numel() else 0
    sums, counts = (
        values.new_zeros(len(logps), many).index_add_(1, which, values) for values in (logps * taught, taught.to(logps))
    )
    weights = (-gamma * spread(sums / counts.clamp(min=1), counts > 0)).exp().clamp(min=1e-6)
    return weights[which]


AGREEMENTS = ("none", "token", "sequence")


def agreement(how: str, logps: torch.Tensor, taught: torch.Tensor, rows: torch.Tensor, gamma: float) -> torch.Tensor:
    """The weights of a name in `AGREEMENTS`, `(N,)`; the arguments are those of [`sequence_agreement`]."""
    if how not in AGREEMENTS:
        raise ValueError(f"`agreement` must be one of {list(AGREEMENTS)}, got {how!r}.")
    if how == "none":
        return torch.ones_like(rows, dtype=logps.dtype)
    return token_agreement(logps, taught, gamma) if how == "token" else sequence_agreement(logps, taught, rows, gamma)


def spent_before(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """
    What share of its row's sum comes before each token, `(N,)`: 0 for the first.

    Args:
        values (`torch.Tensor` of shape `(N,)`): Not negative.
        rows (`torch.Tensor` of shape `(N,)`): Row of each token. The tokens of a row stand together, in their order.
    """
    _, which = rows.unique_consecutive(return_inverse=True)
    many = int(which[-1]) + 1 if which.numel() else 0
    totals = values.new_zeros(many).index_add_(0, which, values)
    start = totals.cumsum(0) - totals
    return (values.cumsum(0) - values - start[which]) / totals[which].clamp(min=torch.finfo(values.dtype).tiny)


def mean_one(weights: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """
    Weights that are 0 where a token is not counted, over their mean at the others: a mean of losses with them is
    sum w L / sum w.

    Args:
        weights (`torch.Tensor` of shape `(N,)`): Not negative.
        counted (`torch.Tensor` of shape `(N,)`): Which tokens count.
    """
    weights = weights * counted
    return weights * counted.sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
