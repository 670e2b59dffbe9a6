# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Fused linear divergence: losses from hidden states. They know only torch and `trl_opsd.losses`."""

from trl_opsd.kernels.forward_pass import TOKEN_STATS
from trl_opsd.kernels.fused import DivergenceStats, fused_linear_divergence
from trl_opsd.kernels.head import Head
from trl_opsd.kernels.inputs import LinearDivergenceInputs
from trl_opsd.kernels.known_tokens import KnownTokens
from trl_opsd.kernels.linear_divergence import linear_divergence
from trl_opsd.kernels.policy import PolicyTerm, label_scores
from trl_opsd.kernels.top_tokens import TOP, top_tokens


__all__ = [
    "TOKEN_STATS",
    "TOP",
    "DivergenceStats",
    "Head",
    "KnownTokens",
    "LinearDivergenceInputs",
    "PolicyTerm",
    "fused_linear_divergence",
    "label_scores",
    "linear_divergence",
    "top_tokens",
]
