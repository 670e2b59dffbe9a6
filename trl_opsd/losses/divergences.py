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

A new divergence is one function from a [`Pair`] to its [`Terms`] and one line in `KINDS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


# Stands for log 0. Finite, so that 0 * log 0 is 0 and log 0 - log 0 is 0 without a comparison at every class, which
# would cost as much as the logarithm; so low that what it adds to a divergence is beyond any true value.
LOG_ZERO = -1e37
INFINITE = 1e10  # a divergence beyond it holds a class that one distribution rules out and the other does not
_MOST_NATS = 80.0  # exp of it fits float32; beyond it one of the two probabilities is below 1e-34


@dataclass(frozen=True)
class DivergenceSpec:
    """
    What is compared and how. A plain value, so that it can be passed through a wrapped model's forward.

    Args:
        kind (`str`): A name in `KINDS`: `"forward_kl"`, `"reverse_kl"`, `"jsd"` or `"skew_kl"`.
        beta (`float`): Weight of the teacher in the mixture m = (1 - beta) p + beta q of `"jsd"` and `"skew_kl"`.
        temperature (`float`): Temperature of both distributions.
        topk (`int` or `None`): Size of the top-k set, `None` for the whole vocabulary.
        topk_source (`str`): Whose most likely tokens form the set: `"student"`, `"teacher"`, or `"union"` for both.
        add_tail (`bool`): Whether the rest of the vocabulary is one more class, else the set is renormalised.
        stop_gradient (`bool`): Whether the set is neither, but the sum over S of p sg(log p/q), for `"reverse_kl"`.
        entry_clip (`float` or `None`): Upper bound on each entry.
        entry_clip_mode (`str`): `"signed"` or `"non_negative"`, the form of the entries that is clipped.
        token_clip (`float` or `None`): Upper bound on each token's divergence.
        token_clip_mode (`str`): `"hard"` or `"scale"`.
        is_clip (`float` or `None`): Upper bound of the importance weight p/p_old.
        target (`str`, `Target` or `None`): One target of the views, a name in `TARGETS` or a function (see
            `losses/targets.py`); `None`: the mean of the divergences to each view.
        token_weight (`TokenWeight` or `None`): A factor on each token's loss from what the pass knows of it: see
            [`TokenStats`].
        needs_all_tokens (`bool`): Whether `token_weight` and `auxiliary_loss` have to see all tokens of the
            micro-batch at once, for a quantile, say. That costs one more product of each head.
        auxiliary_loss (`AuxiliaryLoss` or `None`): A loss beside the divergence, with the same weights but for
            `token_weight`: see [`Tile`].
    """

    kind: str = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    topk: int | None = None
    topk_source: str = "student"
    add_tail: bool = False
    stop_gradient: bool = False
    entry_clip: float | None = None
    entry_clip_mode: str = "signed"
    token_clip: float | None = None
    token_clip_mode: str = "hard"
    is_clip: float | None = None
    target: str | Callable[..., torch.Tensor] | None = None
    token_weight: Callable[..., torch.Tensor] | None = None
    needs_all_tokens: bool = False
    auxiliary_loss: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None


@dataclass(frozen=True)
class Pair:
    """
    Student and teacher on the same classes, each tensor of shape `(N, V)`. Logarithms are at least `LOG_ZERO`.

    Args:
        log_p, log_q (`torch.Tensor`): Log-probabilities of student and teacher.
        p, q (`torch.Tensor`): Their probabilities.
    """

    log_p: torch.Tensor
    log_q: torch.Tensor
    p: torch.Tensor
    q: torch.Tensor

    @classmethod
    def of(cls, log_p: torch.Tensor, log_q: torch.Tensor) -> "Pair":
        """The pair from log-probabilities, which may be -inf."""
        log_p, log_q = log_p.clamp(min=LOG_ZERO), log_q.clamp(min=LOG_ZERO)
        return cls(log_p, log_q, log_p.exp(), log_q.exp())


@dataclass(frozen=True)
class Terms:
    """
    A divergence class by class: see the module's docstring.

    Args:
        entries, slopes (`torch.Tensor` of shape `(N, V)`): What each class adds, and its slope.
        shift (`float`): Entries plus shift (p - q) are non-negative and sum to the same; the slope of that is shift p.
    """

    entries: torch.Tensor
    slopes: torch.Tensor
    shift: float


def reported(log_probs: torch.Tensor) -> torch.Tensor:
    """Log-probabilities as they leave the library: -inf where they are `LOG_ZERO`."""
    return log_probs.masked_fill(log_probs <= LOG_ZERO, -torch.inf)


def forward_kl(pair: Pair, beta: float = 0.5) -> Terms:
    """KL(q||p) = sum_v q_v log(q_v / p_v). The slope -q_v is shifted by p_v."""
    return Terms(pair.q * (pair.log_q - pair.log_p), pair.p - pair.q, 1.0)


def reverse_kl(pair: Pair, beta: float = 0.5) -> Terms:
    """KL(p||q) = sum_v p_v log(p_v / q_v). The slope p_v (log(p_v/q_v) + 1) is shifted by -p_v."""
    entries = pair.p * (pair.log_p - pair.log_q)
    return Terms(entries, entries, -1.0)


def generalized_jsd(pair: Pair, beta: float = 0.5) -> Terms:
    """
    beta KL(q||m) + (1 - beta) KL(p||m) with m = (1 - beta) p + beta q (GKD, huggingface.co/papers/2306.13649).

    The slope is (1 - beta) p_v log(p_v / m_v), as the terms through m cancel.
    """
    gap = (pair.log_q - pair.log_p).clamp_(-_MOST_NATS, _MOST_NATS)
    # log(m/p) from the gap: exactly 0 where q = p, and no digits lost where they are close
    log_ratio = gap.expm1().mul_(beta).log1p_()
    student = (pair.p * log_ratio).mul_(beta - 1.0)
    teacher = (pair.q * gap.sub_(log_ratio)).mul_(beta)
    return Terms(teacher.add_(student), student, 0.0)


def skew_kl(pair: Pair, beta: float = 0.5) -> Terms:
    """
    KL(q||m) with m = (1 - beta) p + beta q (DistiLLM, huggingface.co/papers/2402.03898).

    The slope -(1 - beta) p_v q_v / m_v is shifted by (1 - beta) p_v.
    """
    gap = (pair.log_p - pair.log_q).clamp_(-_MOST_NATS, _MOST_NATS)
    excess = gap.expm1_()  # p/q - 1
    entries = -pair.q * (excess * (1 - beta)).log1p_()
    slopes = pair.p * excess / (1 + (1 - beta) * excess) * (1 - beta) ** 2
    return Terms(entries, slopes, 1.0 - beta)


KINDS: dict[str, Callable[[Pair, float], Terms]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": generalized_jsd,
    "skew_kl": skew_kl,
}


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


def logit_gradient(slopes: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """dD/dz_v = g_v - p_v sum_u g_u, of shape `(N, V)`, from the slopes g (see the module's docstring)."""
    return torch.addcmul(slopes, p, slopes.sum(-1, keepdim=True), value=-1)
