# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Reductions of the token losses: masks, normalisers and shares of views.

Legend: B rows, C completion tokens, K views.
"""

import torch


def distillation_mask(loss_mask: torch.Tensor, taught: torch.Tensor, tokens_to_skip: int) -> torch.Tensor:
    """
    Mask of the distilled tokens: model tokens that a view teaches, but for the first `tokens_to_skip` of each row.

    Args:
        loss_mask (`torch.Tensor` of shape `(B, C)`): 1 at model tokens, 0 at padding and tool results.
        taught (`torch.Tensor` of shape `(B, C)`): Whether a view of the row may teach the token.
        tokens_to_skip (`int`): Model tokens to leave out at the start of each row.
    """
    mask = loss_mask * taught.to(loss_mask.dtype)
    return mask * (loss_mask.cumsum(1) > tokens_to_skip).to(mask.dtype)


def token_weights(mask: torch.Tensor, reduction: str, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """
    Weight of each token, of shape `(B, C)`, so that the loss is a plain weighted sum.

    Args:
        mask (`torch.Tensor` of shape `(B, C)`): From [`distillation_mask`].
        reduction (`str`): `"token_mean"`, `"joint_token_mean"` or `"sequence_mean"`.
        tokens (`torch.Tensor`, 0-d): Number of tokens to divide by, for the first two.
        rows (`torch.Tensor`, 0-d): Number of rows with distilled tokens to divide by, for `"sequence_mean"`.
    """
    mask = mask.float()
    if reduction != "sequence_mean":
        return mask / tokens.clamp(min=1.0)
    return mask / mask.sum(1, keepdim=True).clamp(min=1.0) / rows.clamp(min=1.0)


def relative_positions(loss_mask: torch.Tensor) -> torch.Tensor:
    """
    Relative position of each model token in its completion, of shape `(B, C)`: (i - 0.5) / n for the i-th of n.

    Args:
        loss_mask (`torch.Tensor` of shape `(B, C)`): 1 at model tokens.
    """
    return (loss_mask.cumsum(1) - 0.5) / loss_mask.sum(1, keepdim=True).clamp(min=1)


def view_shares(weights: torch.Tensor) -> torch.Tensor:
    """
    Share of each view at each token, of shape `(K, B, C)`: its weight over the sum of the weights, 0 without any view.

    Args:
        weights (`torch.Tensor` of shape `(K, B, C)`): Weight of each view, 0 where it does not teach the token.
    """
    return weights / weights.sum(0, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
