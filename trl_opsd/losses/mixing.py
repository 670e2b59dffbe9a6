# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Targets that methods make of a teacher and something else: other views, the student, a reference.

Legend: N tokens, V vocabulary, K views, ... any further dimensions; p student, q teacher. Logarithms are natural and
finite, results are log-probabilities of shape `(N, V)` where nothing else is said. Nothing here is differentiated.
"""

import torch


def interpolated(log_a: torch.Tensor, log_b: torch.Tensor, share: float) -> torch.Tensor:
    """
    a^(1 - share) b^share, renormalised: the softmax of logits interpolated by the same share (TAID,
    huggingface.co/papers/2501.16937).

    Args:
        log_a, log_b (`torch.Tensor` of shape `(N, V)`): Log-probabilities.
        share (`float`): Of b.
    """
    return torch.lerp(log_a, log_b, share).log_softmax(-1)


def top_k_alone(log_q: torch.Tensor, k: int) -> torch.Tensor:
    """
    q renormalised over its k most likely tokens, -inf elsewhere (EOPD, huggingface.co/papers/2603.07079).

    Args:
        log_q (`torch.Tensor` of shape `(N, V)`): Log-probabilities.
        k (`int`): Size of the set.
    """
    top = log_q.topk(min(k, log_q.shape[-1]), dim=-1)
    return torch.full_like(log_q, -torch.inf).scatter_(-1, top.indices, top.values.log_softmax(-1))


def tilted(
    log_base: torch.Tensor, log_full: torch.Tensor, log_alone: torch.Tensor, bound: float, temperature: float
) -> torch.Tensor:
    """
    softmax(log base + c tanh(D / c) / b), D = log full - log alone, centred over the vocabulary: the base tilted by the
    pointwise mutual information of token and problem given the reference (Purified OPSD,
    huggingface.co/papers/2607.02234). Of all P it maximises E_P[c tanh(D / c)] - b KL(P||base).

    Args:
        log_base (`torch.Tensor` of shape `(N, V)`): Log-probabilities given the problem.
        log_full, log_alone (`torch.Tensor` of shape `(N, V)`): Given problem and reference, and the reference alone.
        bound (`float`): c.
        temperature (`float`): b.
    """
    gain = log_full - log_alone
    gain = gain - gain.mean(-1, keepdim=True)
    return (log_base + bound * torch.tanh(gain / bound) / temperature).log_softmax(-1)


def coherent_gap(gaps: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """
    Consensus of several views and as much of what they say beyond it as they agree (AVSD,
    huggingface.co/papers/2605.20643), of shape `(...)`:

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
