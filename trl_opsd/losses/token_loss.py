# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The distillation loss of a token and its gradient on the student's logits.

Legend: N tokens, V vocabulary; p student, q teacher.
"""

from dataclasses import dataclass

import torch

from trl_opsd.losses.divergences import INFINITE, KINDS, DivergenceSpec, Pair, clip_entries, logit_gradient
from trl_opsd.losses.support import top_k_support


@dataclass(frozen=True)
class TokenLoss:
    """
    Result of [`token_loss`].

    Args:
        loss (`torch.Tensor` of shape `(N,)`): Loss after all clips, the value that is trained.
        divergence (`torch.Tensor` of shape `(N,)`): Divergence without any clip, for the record.
        gradient (`torch.Tensor` of shape `(N, V)`): d loss / d (logits / temperature).
        clipped (`torch.Tensor` of shape `(N,)`): Share of the token that a clip took away: teacher probability of the
            clipped entries, or 1 for a token beyond the token clip.
        mass_p, mass_q (`torch.Tensor` of shape `(N,)`): Student and teacher probability of the top-k set (1 without).
    """

    loss: torch.Tensor
    divergence: torch.Tensor
    gradient: torch.Tensor
    clipped: torch.Tensor
    mass_p: torch.Tensor
    mass_q: torch.Tensor


def token_loss(pair: Pair, spec: DivergenceSpec) -> TokenLoss:
    """
    Compute the loss that `spec` describes, but for its importance weight.

    Args:
        pair ([`Pair`]): Student and teacher on the vocabulary at the temperature, `(N, V)`.
        spec ([`DivergenceSpec`]): What is compared and how.
    """
    support = None if spec.topk is None else top_k_support(pair, spec)
    classes = pair if support is None else support.pair
    terms = KINDS[spec.kind](classes, spec.beta)
    divergence = loss = _infinite(terms.entries.sum(-1))
    slopes, clipped = terms.slopes, torch.zeros_like(loss)
    if spec.entry_clip is not None:
        loss, slopes, is_clipped = clip_entries(terms, classes, spec)
        clipped = (classes.q * is_clipped).sum(-1)
    gradient = logit_gradient(slopes, pair.p) if support is None else support.logit_gradient(slopes)
    if spec.token_clip is not None:
        over = loss > spec.token_clip
        # "scale" multiplies by min(1, clip / loss) held constant: the value becomes the clip, the direction stays
        keep = spec.token_clip / loss if spec.token_clip_mode == "scale" else torch.zeros_like(loss)
        gradient = gradient * torch.where(over, keep, 1.0).unsqueeze(-1)
        loss = loss.clamp(max=spec.token_clip)
        clipped = torch.where(over, 1.0, clipped)
    whole = torch.ones_like(loss)
    masses = (whole, whole) if support is None else (support.mass_p, support.mass_q)
    return TokenLoss(loss, divergence, gradient, clipped, *masses)


def _infinite(value: torch.Tensor) -> torch.Tensor:
    """A value that only `LOG_ZERO` can have made, as the infinity that it stands for."""
    return torch.where(value > INFINITE, torch.inf, value)
