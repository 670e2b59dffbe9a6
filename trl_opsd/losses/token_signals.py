# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Statistics of sampled tokens that several methods share: log-mean-exp and contrast of views, masked means, sums by turn,
quantiles.

Legend: B rows, C completion tokens, K views, T turns, N tokens of a micro-batch; y the sampled token.
"""

import torch


def log_mean(logps: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """
    Log-mean-exp: logarithm of the mean probability over the views that teach a token, `(B, C)`, 0 where none does.

    Args:
        logps (`torch.Tensor` of shape `(K, B, C)`): log q(y) under each view.
        taught (`torch.Tensor` of shape `(K, B, C)`): 1 where a view teaches a token.
    """
    count = taught.sum(0)
    total = logps.masked_fill(taught == 0, -torch.inf).logsumexp(0)
    return torch.where(count > 0, total - count.clamp(min=1).log(), 0.0)


def contrast(logps: torch.Tensor, taught: torch.Tensor, one: list[int], other: list[int]) -> torch.Tensor:
    """
    Contrastive evidence: log mean_k q_k(y) over the views `one` minus that over the views `other`, `(B, C)`, 0 where
    either has none (RLCSD, 2606.11709, with one correct and several wrong hints).

    Args:
        logps, taught (`torch.Tensor` of shape `(K, B, C)`): As for [`log_mean`].
        one, other (`list[int]`): Numbers of the views, which may be none.
    """
    both = taught[one].any(0) & taught[other].any(0)
    return (log_mean(logps[one], taught[one]) - log_mean(logps[other], taught[other])) * both


def mean_over(chosen: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """
    Mask rescaled so that a mean over `tokens` becomes one over the `chosen` of them: the ratio of their numbers at
    chosen tokens, `(B, C)`, 0 at others.

    Args:
        chosen, tokens (`torch.Tensor` of shape `(B, C)`): 1 at tokens of each set.
    """
    return chosen * tokens.sum() / chosen.sum().clamp(min=1)


def turn_sums(values: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """
    Sum over the tokens of each turn, `(B, T)`, 0 where a row has no such turn. The mean of `values` over the tokens of
    a `mask` is `turn_sums(values * mask, turns) / turn_sums(mask, turns)`.

    Args:
        values (`torch.Tensor` of shape `(B, C)`): Of each token.
        turns (`torch.Tensor` of shape `(B, C)`): Number of the turn that a token is of, -1 for none.
    """
    most = int(turns.max()) + 1 if turns.numel() else 0
    own = torch.where(turns >= 0, values, 0.0)
    return values.new_zeros(len(values), max(most, 1)).scatter_add(1, turns.clamp(min=0), own)


def at_tokens(of_turns: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """
    Value of its turn at each token, `(B, C)`, 0 at tokens of none.

    Args:
        of_turns (`torch.Tensor` of shape `(B, T)`): Of each turn.
        turns (`torch.Tensor` of shape `(B, C)`): As for [`turn_sums`].
    """
    return torch.where(turns >= 0, of_turns.gather(1, turns.clamp(min=0)), 0.0)


def quantile(values: torch.Tensor, share: float) -> torch.Tensor:
    """Quantile of `values`, `(N,)`, 0-d: the value that this share of them does not exceed; 0 of an empty batch."""
    return values.quantile(share) if values.numel() else values.new_zeros(())


def self_normalized(weights: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """
    Self-normalised weights: 0 where a token is not counted, and of mean 1 over the others, so that a mean of losses
    with them is sum w L / sum w.

    Args:
        weights (`torch.Tensor` of shape `(N,)`): Not negative.
        counted (`torch.Tensor` of shape `(N,)`): Which tokens count.
    """
    weights = weights * counted
    return weights * counted.sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
