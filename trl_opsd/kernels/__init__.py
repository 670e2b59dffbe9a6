# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Fused losses on hidden states. They know only torch and `trl_opsd.losses`."""

from trl_opsd.kernels.head import Head
from trl_opsd.kernels.linear_divergence import linear_divergence


__all__ = ["Head", "linear_divergence"]
