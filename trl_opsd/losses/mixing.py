# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Mixtures of distributions that several methods share as targets.

Legend: N tokens, V vocabulary, K views, ... any further dimensions; p student, q teacher. Logarithms are natural and
finite. Nothing here is differentiated.
"""

import torch


def interpolated(log_a: torch.Tensor, log_b: torch.Tensor, share: float) -> torch.Tensor:
    """
    Geometric mixture a^(1 - share) b^share, renormalised, as log-probabilities `(N, V)`: the softmax of logits
    interpolated by the same share (TAID, huggingface.co/papers/2501.16937).

    Args:
        log_a, log_b (`torch.Tensor` of shape `(N, V)`): Log-probabilities.
        share (`float`): Of b.
    """
    return torch.lerp(log_a, log_b, share).log_softmax(-1)


def coherent_gap(gaps: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """
    Coherence-weighted consensus of several views' gaps, of shape `(...)`: their mean, and as much of what they say
    beyond it as they agree (AVSD, huggingface.co/papers/2605.20643):

        G = sum_m s_m D_m,  J = max(log sum_m s_m exp(D_m) - G, 0),  G + C R J,
        C = |G| / (sum_m s_m |D_m| + eps),  R = |G| / (|G| + J + eps)

    As C R J <= |G|, the sign is that of the consensus.

    Args:
        gaps (`torch.Tensor` of shape `(K, ...)`): D_m = log q_m - log p.
        shares (`torch.Tensor` of shape `(K, ...)`): s_m, which sum to 1 over the views that teach the token.
    """
    tiny = 1e-8
    consensus = (shares * gaps).sum(0)
    residual = ((shares.log() + gaps).logsumexp(0) - consensus).clamp(min=0.0)
    size = consensus.abs()
    coherence = size / ((shares * gaps.abs()).sum(0) + tiny)
    return consensus + coherence * (size / (size + residual + tiny)) * residual
