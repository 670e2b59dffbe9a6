# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Divergences of two categorical distributions, with their gradients in closed form.

Legend: N tokens, V classes (vocabulary entries, or the classes of a top-k set); p student, q teacher.

A divergence D(q, p) is two arrays over the classes:

- `entries` e_v: what each class adds, D = sum_v e_v, in the signed form of the literature, for example q log(q/p).
- `slopes` g_v = p_v * dD/dp_v, up to adding a multiple of p_v.

The gradient on the logits z = log p + const is then dD/dz_v = g_v - p_v * sum_u g_u, whatever the divergence. The free
multiple of p_v is chosen so that every slope is exactly 0 where q = p: a student that agrees with its teacher receives
a gradient of exactly zero, not one of rounding size.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DivergenceSpec:
    """
    What is compared and how. A plain value, so that it can be passed through a wrapped model's forward.

    Args:
        alpha (`float`): `0` forward KL(q||p), `1` reverse KL(p||q), else generalised Jensen-Shannon with weight alpha.
        temperature (`float`): Temperature of both distributions.
        topk (`int` or `None`): Size of the top-k set, `None` for the whole vocabulary.
        topk_source (`str`): Whose most likely tokens form the set, `"student"` or `"teacher"`.
        add_tail (`bool`): Whether the rest of the vocabulary is one more class, else the set is renormalised.
        entry_clip (`float` or `None`): Upper bound on each entry.
        entry_clip_mode (`str`): `"signed"` or `"non_negative"`, the form of the entries that is clipped.
        token_clip (`float` or `None`): Upper bound on each token's divergence.
        token_clip_mode (`str`): `"hard"` or `"scale"`.
        is_clip (`float` or `None`): Upper bound of the importance weight p/p_old.
    """

    alpha: float = 0.0
    temperature: float = 1.0
    topk: int | None = None
    topk_source: str = "student"
    add_tail: bool = False
    entry_clip: float | None = None
    entry_clip_mode: str = "signed"
    token_clip: float | None = None
    token_clip_mode: str = "hard"
    is_clip: float | None = None


def _times_log(weight: torch.Tensor, log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
    """`weight * (log_a - log_b)` with 0 where the weight is 0, also against infinite logarithms."""
    return torch.where(weight > 0, weight * (log_a - log_b), 0.0)


def forward_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    KL(q||p) = sum_v q_v log(q_v / p_v).

    Args:
        log_p, log_q (`torch.Tensor` of shape `(N, V)`): Log-probabilities of student and teacher.

    Returns:
        Entries and slopes, each of shape `(N, V)`. The slope -q_v is shifted by p_v.
    """
    p, q = log_p.exp(), log_q.exp()
    return _times_log(q, log_q, log_p), p - q


def reverse_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p||q) = sum_v p_v log(p_v / q_v). The slope p_v (log(p_v/q_v) + 1) is shifted by -p_v. See [`forward_kl`]."""
    entries = _times_log(log_p.exp(), log_p, log_q)
    return entries, entries


def generalized_jsd(log_p: torch.Tensor, log_q: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """
    alpha KL(q||m) + (1 - alpha) KL(p||m) with m = (1 - alpha) p + alpha q (GKD, huggingface.co/papers/2306.13649).

    The slope is (1 - alpha) p_v log(p_v / m_v), as the terms through m cancel. See [`forward_kl`].
    """
    p, q = log_p.exp(), log_q.exp()
    # Written so that m is exactly p where q is exactly p
    m = p + alpha * (q - p)
    # Where the product rounds to 0 beside a positive p or q, the larger of them stands for m
    log_m = torch.where(m > 0, m, torch.maximum(p, q)).log()
    # p from its logarithm again, so that log p - log m is exactly 0 there too
    student = (1 - alpha) * _times_log(p, p.log(), log_m)
    teacher = alpha * _times_log(q, q.log(), log_m)
    return student + teacher, student


def divergence_entries(log_p: torch.Tensor, log_q: torch.Tensor, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Entries and slopes of the divergence that `alpha` names: `0` forward KL, `1` reverse KL, else Jensen-Shannon."""
    if alpha == 0:
        return forward_kl(log_p, log_q)
    if alpha == 1:
        return reverse_kl(log_p, log_q)
    return generalized_jsd(log_p, log_q, alpha)


def non_negative_correction(
    log_p: torch.Tensor, log_q: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What turns signed entries into non-negative ones, and its slope: p - q for the forward KL, q - p for the reverse.

    It sums to 0 over the classes. The entries of the Jensen-Shannon divergence are non-negative as they are (log-sum
    inequality).
    """
    p, q = log_p.exp(), log_q.exp()
    if alpha == 0:
        return p - q, p
    if alpha == 1:
        return q - p, -p
    return torch.zeros_like(p), torch.zeros_like(p)


def clip_entries(
    entries: torch.Tensor, slopes: torch.Tensor, log_p: torch.Tensor, log_q: torch.Tensor, spec: DivergenceSpec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Bound each entry from above by `spec.entry_clip`: clipped entries are constant and pass no gradient.

    `"signed"` is the point-wise clip of OPSD (huggingface.co/papers/2601.18734): sum_v min(q_v log(q_v/p_v), c).

    Args:
        entries, slopes (`torch.Tensor` of shape `(N, V)`): From [`divergence_entries`].
        log_p, log_q (`torch.Tensor` of shape `(N, V)`): Log-probabilities of student and teacher.
        spec ([`DivergenceSpec`]): Bound and form.

    Returns:
        Clipped value of shape `(N,)`, slopes of shape `(N, V)`, and the mask of clipped entries of shape `(N, V)`.
    """
    clip, alpha = spec.entry_clip, spec.alpha
    correction, correction_slope = non_negative_correction(log_p, log_q, alpha)
    # The true slope of an entry is the shifted one without its shift: the shift is the correction's slope, which only
    # cancels in the sum over all entries
    entry_slopes = slopes - correction_slope
    if spec.entry_clip_mode == "non_negative":
        entries, entry_slopes = entries + correction, slopes
    clipped = entries > clip
    value = entries.clamp(max=clip).sum(-1)
    slopes = torch.where(clipped, 0.0, entry_slopes)
    if spec.entry_clip_mode == "signed":
        slopes = slopes + correction_slope  # a multiple of p_v again, so allowed: exact zeros where q = p
    return value, slopes, clipped


def logit_gradient(slopes: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """dD/dz_v = g_v - p_v sum_u g_u, of shape `(N, V)`, from the slopes g (see the module's docstring)."""
    return slopes - log_p.exp() * slopes.sum(-1, keepdim=True)
