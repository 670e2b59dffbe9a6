# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Targets: one teacher distribution from several views, or from a view and the student.

A target is a function from the student's log-probabilities, `(N, V)`, those of each view, K times `(N, V)`, and the
shares of the views, `(K, N)`, to log-probabilities `(N, V)` that the student is pulled to. It is constant: no gradient
passes through it.

Legend: N tokens, V vocabulary, K views; p student, q teacher.
"""

from collections.abc import Callable
from functools import reduce

import torch

from trl_opsd.losses.divergences import LOG_ZERO


Target = Callable[[torch.Tensor, list[torch.Tensor], torch.Tensor], torch.Tensor]


def arithmetic_mean(log_p: torch.Tensor, log_qs: list[torch.Tensor], shares: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the views' probabilities, which minimises the mean forward KL from them."""
    # Of logarithms: a probability that underflows is not 0, and a reverse KL to it is not infinite
    weighted = zip(shares.unsqueeze(-1), log_qs, strict=True)
    return reduce(torch.logaddexp, (view + share.log() for share, view in weighted))


def geometric_mean(log_p: torch.Tensor, log_qs: list[torch.Tensor], shares: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the views' log-probabilities, renormalised, which minimises the mean reverse KL to them."""
    return sum(share * view for share, view in zip(shares.unsqueeze(-1), log_qs, strict=True)).log_softmax(-1)


TARGETS: dict[str, Target] = {"arithmetic": arithmetic_mean, "geometric": geometric_mean}


def one_target(
    log_p: torch.Tensor, log_qs: list[torch.Tensor], shares: torch.Tensor, target: str | Target
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Target distribution of the views, as log-probabilities and probabilities of shape `(N, V)`.

    Args:
        log_p (`torch.Tensor` of shape `(N, V)`): Log-probabilities of the student.
        log_qs (`list[torch.Tensor]`): Those of each view, of shape `(N, V)`.
        shares (`torch.Tensor` of shape `(K, N)`): Share of each view in each token, summing to 1 over the views.
        target (`str` or `Target`): A name in `TARGETS`, or a function.
    """
    log_q = (TARGETS[target] if isinstance(target, str) else target)(log_p, log_qs, shares).clamp(min=LOG_ZERO)
    return log_q, log_q.exp()
