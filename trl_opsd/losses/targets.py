# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One target from several views. Legend: N tokens, V vocabulary, K views; q teacher."""

from functools import reduce

import torch

from trl_opsd.losses.divergences import LOG_ZERO


def mixed_target(log_qs: list[torch.Tensor], shares: torch.Tensor, mixture: str) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The weighted mean of the views' distributions, as log-probabilities and probabilities of shape `(N, V)`.

    The geometric mean, renormalised, minimises the mean reverse KL to the views; the arithmetic mean minimises the mean
    forward KL from them.

    Args:
        log_qs (`list[torch.Tensor]`): Log-probabilities of each view, of shape `(N, V)`.
        shares (`torch.Tensor` of shape `(K, N)`): Share of each view in each token, summing to 1 over the views.
        mixture (`str`): `"arithmetic"` or `"geometric"`.
    """
    weighted = zip(shares.unsqueeze(-1), log_qs, strict=True)
    if mixture == "arithmetic":
        # Of logarithms: a probability that underflows is not 0, and a reverse KL to it is not infinite
        log_q = reduce(torch.logaddexp, (view + share.log() for share, view in weighted))
    else:
        log_q = sum(share * view for share, view in weighted).log_softmax(-1)
    log_q = log_q.clamp(min=LOG_ZERO)
    return log_q, log_q.exp()
