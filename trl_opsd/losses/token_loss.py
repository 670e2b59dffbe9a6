# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The distillation loss of a token and its gradient on the student's logits.

Legend: N tokens, V vocabulary; p student, q teacher.
"""

from dataclasses import dataclass

import torch

from trl_opsd.losses.divergences import DivergenceSpec, clip_entries, divergence_entries, logit_gradient
from trl_opsd.losses.support import top_k_support


@dataclass
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


def token_loss(log_p: torch.Tensor, log_q: torch.Tensor, spec: DivergenceSpec) -> TokenLoss:
    """
    Compute the loss that `spec` describes, but for its importance weight.

    Args:
        log_p, log_q (`torch.Tensor` of shape `(N, V)`): Log-probabilities of student and teacher at the temperature.
        spec ([`DivergenceSpec`]): What is compared and how.
    """
    classes_p, classes_q, support = log_p, log_q, None
    mass_p = mass_q = torch.ones_like(log_p[:, 0])
    if spec.topk is not None:
        support = top_k_support(log_p, log_q, spec)
        classes_p, classes_q = support.log_p, support.log_q
        mass_p, mass_q = support.mass_p, support.mass_q

    entries, slopes = divergence_entries(classes_p, classes_q, spec.alpha)
    divergence = loss = entries.sum(-1)
    clipped = torch.zeros_like(loss)
    if spec.entry_clip is not None:
        loss, slopes, is_clipped = clip_entries(entries, slopes, classes_p, classes_q, spec)
        clipped = (classes_q.exp() * is_clipped).sum(-1)
    if support is None:
        gradient = logit_gradient(slopes, classes_p)
    else:
        gradient = support.logit_gradient(slopes, log_p)

    if spec.token_clip is not None:
        over = loss > spec.token_clip
        # "scale" multiplies by min(1, clip / loss) held constant: the value becomes the clip, the direction stays
        keep = spec.token_clip / loss if spec.token_clip_mode == "scale" else torch.zeros_like(loss)
        keep = torch.where(over, keep, 1.0).unsqueeze(-1)
        gradient = torch.where(keep > 0, gradient * keep, 0.0)  # an infinite divergence has no finite gradient
        loss = loss.clamp(max=spec.token_clip)
        clipped = torch.where(over, 1.0, clipped)
    return TokenLoss(loss, divergence, gradient, clipped, mass_p, mass_q)
