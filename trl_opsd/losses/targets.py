# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One target from several views. Legend: N tokens, V vocabulary, K views; q teacher."""

import torch

from trl_opsd.losses.divergences import LOG_ZERO


def mixed_target(
    log_qs: list[torch.Tensor], qs: list[torch.Tensor], shares: torch.Tensor, mixture: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The weighted mean of the views' distributions, as log-probabilities and probabilities of shape `(N, V)`.

    The geometric mean, renormalised, minimises the mean reverse KL to the views; the arithmetic mean minimises the mean
    forward KL from them.

    Args:
        log_qs, qs (`list[torch.Tensor]`): Of each view: log-probabilities and probabilities of shape `(N, V)`.
        shares (`torch.Tensor` of shape `(K, N)`): Share of each view in each token, summing to 1 over the views.
        mixture (`str`): `"arithmetic"` or `"geometric"`.
    """
    if mixture == "arithmetic":
        q = sum(share.unsqueeze(-1) * view for share, view in zip(shares, qs, strict=True))
        return q.log().clamp_(min=LOG_ZERO), q
    log_q = sum(share.unsqueeze(-1) * view for share, view in zip(shares, log_qs, strict=True))
    log_q = log_q.log_softmax(-1).clamp_(min=LOG_ZERO)
    return log_q, log_q.exp()
