# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Pieces that advantages of tokens are made of.

Legend: B rows, C completion tokens, K views.
"""

import math

import torch


def log_mean(logps: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """
    Logarithm of the mean probability under those views that teach a token, `(B, C)`, 0 where none does.

    Args:
        logps (`torch.Tensor` of shape `(K, B, C)`): log q(y) under each view.
        taught (`torch.Tensor` of shape `(K, B, C)`): 1 where a view teaches a token.
    """
    count = taught.sum(0)
    total = logps.masked_fill(taught == 0, -torch.inf).logsumexp(0)
    return torch.where(count > 0, total - count.clamp(min=1).log(), 0.0)


def contrast(logps: torch.Tensor, taught: torch.Tensor, one: list[int], other: list[int]) -> torch.Tensor:
    """
    log mean_k q_k(y) over the views `one` minus that over the views `other`, `(B, C)`, 0 where either has none (RLCSD,
    2606.11709, with one correct and several wrong hints).

    Args:
        logps, taught (`torch.Tensor` of shape `(K, B, C)`): As for [`log_mean`].
        one, other (`list[int]`): Numbers of the views, which may be none.
    """
    both = taught[one].any(0) & taught[other].any(0)
    return (log_mean(logps[one], taught[one]) - log_mean(logps[other], taught[other])) * both


def keep_sign(values: torch.Tensor, verifier: torch.Tensor) -> torch.Tensor:
    """Values with the verifier's sign, 0 where they have the other one or it has none, `(B, C)`."""
    sign = verifier.sign()
    return sign * (sign * values).clamp(min=0.0)


def mean_over(chosen: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """
    Factor that makes a mean over `tokens` one over the `chosen` of them: their ratio at chosen tokens, `(B, C)`, 0 at
    others.

    Args:
        chosen, tokens (`torch.Tensor` of shape `(B, C)`): 1 at tokens of each set.
    """
    return chosen * tokens.sum() / chosen.sum().clamp(min=1)


def top_share(values: torch.Tensor, mask: torch.Tensor, share: float) -> torch.Tensor:
    """
    1 at that share of the tokens which has the largest values, rounded up, `(B, C)`; of equal values all.

    Args:
        values, mask (`torch.Tensor` of shape `(B, C)`): Values, and 1 at the tokens to choose from.
        share (`float`): From 0 to 1.
    """
    ordered = values[mask > 0].sort(descending=True).values
    count = math.ceil(share * len(ordered) - 1e-9)  # 0.1 * 30 is above 3
    return mask * (values >= ordered[count - 1]) if count else torch.zeros_like(mask)
