# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Pure functions on tensors: divergences, supports, clips and reductions. They know only torch."""

from trl_opsd.losses.divergences import (
    KINDS,
    DivergenceSpec,
    Pair,
    Terms,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skew_kl,
)
from trl_opsd.losses.method_types import AuxiliaryLoss, Tile, TokenStats, TokenWeight
from trl_opsd.losses.reductions import distillation_mask, relative_positions, token_weights, view_shares
from trl_opsd.losses.targets import TARGETS, Target, one_target
from trl_opsd.losses.token_loss import TokenLoss, token_loss
from trl_opsd.losses.token_signals import contrast, log_mean, mean_over, quantile, self_normalized


__all__ = [
    "KINDS",
    "TARGETS",
    "AuxiliaryLoss",
    "DivergenceSpec",
    "Pair",
    "Target",
    "Terms",
    "Tile",
    "TokenLoss",
    "TokenStats",
    "TokenWeight",
    "contrast",
    "distillation_mask",
    "forward_kl",
    "generalized_jsd",
    "log_mean",
    "mean_over",
    "one_target",
    "quantile",
    "relative_positions",
    "reverse_kl",
    "self_normalized",
    "skew_kl",
    "token_loss",
    "token_weights",
    "view_shares",
]
