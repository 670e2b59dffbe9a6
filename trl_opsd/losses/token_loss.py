# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Token-level distillation loss and its gradient on the student's logits.

A new statistic of a token is one entry in `TokenLoss.stats` and its name in [`stat_names`]: the kernel stores it, and
the log has its mean, under `self_distillation/`.

Legend: N tokens, V vocabulary, C classes (the vocabulary, or those of a top-k set); p student, q teacher.
"""

from dataclasses import dataclass

import torch

from trl_opsd.losses.divergence_spec import DivergenceSpec
from trl_opsd.losses.divergences import DIVERGENCES, INFINITE, Pair, Terms, logit_gradient
from trl_opsd.losses.support import top_k_support


@dataclass(frozen=True)
class TokenLoss:
    """
    Result of [`token_loss`].

    Args:
        loss (`torch.Tensor` of shape `(N,)`): Loss after all clips, the value that is trained.
        gradient (`torch.Tensor` of shape `(N, V)`): d loss / d (logits / temperature).
        stats (`dict[str, torch.Tensor]`): Statistics of shape `(N,)`, with the names of [`stat_names`]: `loss`;
            `divergence` without any clip; `clipped`, the share of the token that a clip took away (teacher probability
            of the clipped entries, or 1 for a token beyond the token clip); with a top-k set `mass_p` and `mass_q`, its
            probability under student and teacher.
    """

    loss: torch.Tensor
    gradient: torch.Tensor
    stats: dict[str, torch.Tensor]


def stat_names(spec: DivergenceSpec) -> tuple[str, ...]:
    """Names of the statistics of [`token_loss`], for whoever has to make room for them before the first token."""
    return ("loss", "divergence", "clipped", *(() if spec.topk is None else ("mass_p", "mass_q")))


def token_loss(pair: Pair, spec: DivergenceSpec) -> TokenLoss:
    """
    Compute the loss that `spec` describes, without its importance weight.

    Args:
        pair ([`Pair`]): Student and teacher on the vocabulary at the temperature, `(N, V)`.
        spec ([`DivergenceSpec`]): Divergence, support and clips.
    """
    support = None if spec.topk is None else top_k_support(pair, spec)
    classes = pair if support is None else support.pair
    terms = DIVERGENCES[spec.divergence].terms(classes, spec.alpha)
    value = terms.entries.sum(-1)
    # Only `LOG_ZERO` can have made so large a value: it stands for infinity
    divergence = loss = torch.where(value > INFINITE, torch.inf, value)
    slopes, clipped = terms.slopes, torch.zeros_like(loss)
    if spec.entry_clip is not None:
        loss, slopes, is_clipped = clip_entries(terms, classes, spec)
        clipped = (classes.q * is_clipped).sum(-1)
    gradient = logit_gradient(slopes, pair.p) if support is None else support.logit_gradient(slopes)
    if spec.token_clip is not None:
        over = loss > spec.token_clip
        gradient = gradient.masked_fill(over.unsqueeze(-1), 0.0)
        loss = loss.clamp(max=spec.token_clip)
        clipped = torch.where(over, 1.0, clipped)
    stats = {"loss": loss, "divergence": divergence, "clipped": clipped}
    if support is not None:
        stats |= {"mass_p": support.mass_p, "mass_q": support.mass_q}
    return TokenLoss(loss, gradient, stats)


def clip_entries(terms: Terms, pair: Pair, spec: DivergenceSpec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Bound each entry from above by `spec.entry_clip`: clipped entries are constant and pass no gradient.

    `"signed"` is the point-wise clip of OPSD (huggingface.co/papers/2601.18734): sum_v min(q_v log(q_v/p_v), c).

    Args:
        terms ([`Terms`]): The divergence.
        pair ([`Pair`]): Student and teacher.
        spec ([`DivergenceSpec`]): Bound and form.

    Returns:
        Clipped value of shape `(N,)`, slopes of shape `(N, V)`, and the mask of clipped entries of shape `(N, V)`.
    """
    if spec.entry_clip_mode == "non_negative":
        entries = terms.entries + terms.shift * (pair.p - pair.q)
        clipped = entries > spec.entry_clip
        slopes = torch.where(clipped, 0.0, terms.slopes)
    else:
        entries = terms.entries
        clipped = entries > spec.entry_clip
        # The true slope of an entry is the one without its shift, which only cancels in the sum over all entries. Put
        # back at every class it is a multiple of p_v again: exact zeros where q = p
        shift = terms.shift * pair.p
        slopes = torch.where(clipped, 0.0, terms.slopes - shift) + shift
    return entries.clamp(max=spec.entry_clip).sum(-1), slopes, clipped
