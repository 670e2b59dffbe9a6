# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Inputs of the fused linear divergence.

Legend: N tokens, the first M <= N of them distilled, H hidden size, V vocabulary, K views.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trl_opsd.kernels.head import Head
from trl_opsd.kernels.known_tokens import KnownTokens
from trl_opsd.kernels.policy import PolicyTerm
from trl_opsd.losses import DivergenceSpec


@dataclass
class LinearDivergenceInputs:
    """
    Everything but the student's hidden states `(N, H)`.

    Args:
        head ([`Head`]): Student head; gradient flows to its weight and bias where they require it.
        teacher_hidden (`torch.Tensor` of shape `(K, M, H')`): Teacher hidden states of each view, constant.
        teacher_heads (`Sequence[Head]` of length K): Teacher head of each view, constant.
        labels (`torch.Tensor` of shape `(N,)`): Sampled tokens.
        known ([`KnownTokens`], *optional*): What is known of the teachers' distributions, in place of hidden states and
            heads, of which there are none then.
        weights (`torch.Tensor` of shape `(K, M)`): Factor on the loss of each token under each view.
        spec ([`DivergenceSpec`]): Divergence, support and clips, and what a method adds.
        view_specs (`Sequence[DivergenceSpec]` of length K, *optional*): The same with the divergence of each view,
            where views have some of their own.
        old_logps (`torch.Tensor` of shape `(M,)`, *optional*): Log-probabilities of `labels` when they were sampled,
            for `spec.is_clip`; `nan` where the sampler could not give one.
        relative_positions, turns, rows (`torch.Tensor` of shape `(M,)`, *optional*): As in
            [`~trl_opsd.losses.TokenStats`], for `spec.token_weight`.
        policy ([`PolicyTerm`], *optional*): A loss of the log-probabilities of all N labels, to be trained with it.
        chunk_size (`int`, *optional*): Most tokens of a chunk, instead of what the memory budget gives.
    """

    head: Head
    teacher_hidden: torch.Tensor
    teacher_heads: Sequence[Head]
    labels: torch.Tensor
    weights: torch.Tensor
    spec: DivergenceSpec
    known: KnownTokens | None = None
    view_specs: Sequence[DivergenceSpec] | None = None
    old_logps: torch.Tensor | None = None
    relative_positions: torch.Tensor | None = None
    turns: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    policy: PolicyTerm | None = None
    chunk_size: int | None = None
