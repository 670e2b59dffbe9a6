# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Losses as pure functions on tensors: divergences, supports, clips and reductions. They know only torch."""

from trl_opsd.deprecated import deprecated_names
from trl_opsd.losses.divergence_spec import DivergenceSpec
from trl_opsd.losses.divergences import (
    DIVERGENCES,
    Divergence,
    Pair,
    Terms,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skew_kl,
)
from trl_opsd.losses.method_types import AuxiliaryLoss, Tile, TokenStats, TokenWeight
from trl_opsd.losses.targets import TARGETS, Target, one_target
from trl_opsd.losses.token_loss import TokenLoss, stat_names, token_loss
from trl_opsd.losses.token_signals import (
    at_tokens,
    contrast,
    log_mean,
    mean_over,
    quantile,
    self_normalized,
    turn_sums,
)


__all__ = [
    "DIVERGENCES",
    "TARGETS",
    "AuxiliaryLoss",
    "Divergence",
    "DivergenceSpec",
    "Pair",
    "Target",
    "Terms",
    "Tile",
    "TokenLoss",
    "TokenStats",
    "TokenWeight",
    "at_tokens",
    "contrast",
    "forward_kl",
    "generalized_jsd",
    "log_mean",
    "mean_over",
    "one_target",
    "quantile",
    "reverse_kl",
    "self_normalized",
    "skew_kl",
    "stat_names",
    "token_loss",
    "turn_sums",
]

__getattr__ = deprecated_names(
    __name__,
    {
        "Extra": "trl_opsd.losses.AuxiliaryLoss",
        "Weigh": "trl_opsd.losses.TokenWeight",
    },
)
