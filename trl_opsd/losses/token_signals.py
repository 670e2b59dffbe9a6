# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Statistics of sampled tokens that several methods share: log-mean-exp and contrast of views, masked means, quantiles.

Legend: B rows, C completion tokens, K views, N tokens of a micro-batch; y the sampled token.
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
