# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Which tokens count and how much: masks, normalisers and the share of each view.

Legend: B rows, C completion tokens, K views.
"""

import torch


def distillation_mask(loss_mask: torch.Tensor, has_view: torch.Tensor, tokens_to_skip: int) -> torch.Tensor:
    """
    Tokens that are distilled: model tokens of rows with a view, but for the first `tokens_to_skip` of each row.

    Args:
        loss_mask (`torch.Tensor` of shape `(B, C)`): 1 at model tokens, 0 at padding and tool results.
        has_view (`torch.Tensor` of shape `(B,)`): Whether the row has a view.
        tokens_to_skip (`int`): Model tokens to leave out at the start of each row.
    """
    mask = loss_mask * has_view.to(loss_mask.dtype).unsqueeze(1)
    return mask * (loss_mask.cumsum(1) > tokens_to_skip).to(mask.dtype)


def token_weights(mask: torch.Tensor, reduction: str, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """
    Weight of each token, of shape `(B, C)`, so that the loss is a plain weighted sum.

    Args:
        mask (`torch.Tensor` of shape `(B, C)`): From [`distillation_mask`].
        reduction (`str`): `"token_mean"` or `"sequence_mean"`.
        tokens (`torch.Tensor`, 0-d): Number of distilled tokens to divide by, for `"token_mean"`.
        rows (`torch.Tensor`, 0-d): Number of rows with distilled tokens to divide by, for `"sequence_mean"`.
    """
    mask = mask.float()
    if reduction == "token_mean":
        return mask / tokens.clamp(min=1.0)
    return mask / mask.sum(1, keepdim=True).clamp(min=1.0) / rows.clamp(min=1.0)


def view_shares(weights: torch.Tensor) -> torch.Tensor:
    """
    Share of each view in its row, of shape `(K, B)`: its weight over the sum of the row's weights, 0 without any view.

    Args:
        weights (`torch.Tensor` of shape `(K, B)`): Weight of each view, 0 where a row lacks it.
    """
    return weights / weights.sum(0, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
