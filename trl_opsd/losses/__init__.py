# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Pure functions on tensors: divergences, supports, clips and reductions. They know only torch."""

from trl_opsd.losses.divergences import DivergenceSpec, forward_kl, generalized_jsd, reverse_kl
from trl_opsd.losses.reductions import distillation_mask, token_weights, view_shares
from trl_opsd.losses.token_loss import TokenLoss, token_loss


__all__ = [
    "DivergenceSpec",
    "TokenLoss",
    "distillation_mask",
    "forward_kl",
    "generalized_jsd",
    "reverse_kl",
    "token_loss",
    "token_weights",
    "view_shares",
]
