# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Divergences of two categorical distributions, with closed-form gradients.

Legend: N tokens, V classes (vocabulary entries, or the classes of a top-k set); p student, q teacher.

A divergence D(q, p) is two arrays over the classes:

- `entries` e_v: what each class adds, D = sum_v e_v, in the signed form of the literature, for example q log(q/p).
- `slopes` g_v = p_v * dD/dp_v, up to adding a multiple of p_v.

The gradient on the logits z = log p + const is then dD/dz_v = g_v - p_v * sum_u g_u, whatever the divergence. The free
multiple of p_v is chosen so that every slope is exactly 0 where q = p: a student that agrees with its teacher receives
a gradient of exactly zero, not one of rounding size.

A new divergence is one function from a [`Pair`] to its [`Terms`] and one line in `DIVERGENCES`: its name is then a
value of `distillation_divergence`.
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
class Pair:
    """
    Student and teacher distributions over the same classes, each tensor of shape `(N, V)`. Logarithms are at least
    `LOG_ZERO`.

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
    Contributions of the classes to a divergence and its gradient, as defined in the module's docstring.

    Args:
        entries, slopes (`torch.Tensor` of shape `(N, V)`): What each class adds, and its slope.
        shift (`float`): Entries plus shift (p - q) are non-negative and sum to the same; the slope of that is shift p.
    """

    entries: torch.Tensor
    slopes: torch.Tensor
    shift: float


def reported(log_probs: torch.Tensor) -> torch.Tensor:
    """Log-probabilities for statistics and policy losses: -inf in place of `LOG_ZERO`."""
    return log_probs.masked_fill(log_probs <= LOG_ZERO, -torch.inf)


def forward_kl(pair: Pair, alpha: float = 0.0) -> Terms:
    """KL(q||p) = sum_v q_v log(q_v / p_v). The slope -q_v is shifted by p_v."""
    return Terms(pair.q * (pair.log_q - pair.log_p), pair.p - pair.q, 1.0)


def reverse_kl(pair: Pair, alpha: float = 0.0) -> Terms:
    """KL(p||q) = sum_v p_v log(p_v / q_v). The slope p_v (log(p_v/q_v) + 1) is shifted by -p_v."""
    entries = pair.p * (pair.log_p - pair.log_q)
    return Terms(entries, entries, -1.0)


def generalized_jsd(pair: Pair, alpha: float) -> Terms:
    """
    alpha KL(q||m) + (1 - alpha) KL(p||m) with m = (1 - alpha) p + alpha q (GKD, huggingface.co/papers/2306.13649).

    The slope is (1 - alpha) p_v log(p_v / m_v), as the terms through m cancel.
    """
    gap = (pair.log_q - pair.log_p).clamp_(-_MOST_NATS, _MOST_NATS)
    # log(m/p) from the gap: exactly 0 where q = p, and no digits lost where they are close
    log_ratio = gap.expm1().mul_(alpha).log1p_()
    student = (pair.p * log_ratio).mul_(alpha - 1.0)
    teacher = (pair.q * gap.sub_(log_ratio)).mul_(alpha)
    return Terms(teacher.add_(student), student, 0.0)


def skew_kl(pair: Pair, alpha: float) -> Terms:
    """
    KL(q||m) with m = (1 - alpha) p + alpha q (DistiLLM, huggingface.co/papers/2402.03898).

    The slope -(1 - alpha) p_v q_v / m_v is shifted by (1 - alpha) p_v.
    """
    gap = (pair.log_p - pair.log_q).clamp_(-_MOST_NATS, _MOST_NATS)
    excess = gap.expm1_()  # p/q - 1
    entries = -pair.q * (excess * (1 - alpha)).log1p_()
    slopes = pair.p * excess / (1 + (1 - alpha) * excess) * (1 - alpha) ** 2
    return Terms(entries, slopes, 1.0 - alpha)


@dataclass(frozen=True)
class Divergence:
    """
    A divergence that a recipe can name.

    Args:
        terms (`Callable[[Pair, float], Terms]`): Entries and slopes from student and teacher and `alpha`.
        alpha_range (`tuple[float, float]`, *optional*): Open interval in which its parameter `alpha` lies. `None`: it
            has no parameter.
    """

    terms: Callable[[Pair, float], Terms]
    alpha_range: tuple[float, float] | None = None


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(forward_kl),
    "reverse_kl": Divergence(reverse_kl),
    "jsd": Divergence(generalized_jsd, (0.0, 1.0)),
    "skew_kl": Divergence(skew_kl, (0.0, 1.0)),
}


def logit_gradient(slopes: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Gradient on the logits, dD/dz_v = g_v - p_v sum_u g_u, of shape `(N, V)`, from the slopes g."""
    return torch.addcmul(slopes, p, slopes.sum(-1, keepdim=True), value=-1)
