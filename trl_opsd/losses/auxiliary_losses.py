# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Losses of a token beside a divergence, `(t,)`, each with its gradient on the tempered logits in closed form, `(t, V)`.

Legend: t tokens, V vocabulary, S candidates; p student, q teacher; y the sampled token.
"""

import torch

from trl_opsd.losses.method_types import Tile


def scaled(term: tuple[torch.Tensor, torch.Tensor], factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss and its gradient times a constant factor of each token, `(t,)`."""
    return factor * term[0], factor.unsqueeze(-1) * term[1]


def entropy(log_p: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    H = -sum_v p_v log p_v, and dH/dz_v = -p_v (log p_v + H).

    Args:
        log_p, p (`torch.Tensor` of shape `(t, V)`): Log-probabilities and probabilities.
    """
    value = -(p * log_p).sum(-1)
    return value, -p * (log_p + value.unsqueeze(-1))


def plackett_luce(log_p: torch.Tensor, log_q: torch.Tensor, candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Negative log-likelihood of the teacher's order of the student's most likely tokens, under Plackett and Luce:
    -sum_i [z_i - log sum_{j >= i} exp z_j], with z the student's logits in the order of falling q (the indirect term of
    TSD-KD, huggingface.co/papers/2603.13260).

    Args:
        log_p, log_q (`torch.Tensor` of shape `(t, V)`): Log-probabilities.
        candidates (`int`): S.
    """
    chosen = log_p.topk(min(candidates, log_p.shape[-1]), dim=-1).indices
    order = log_q.gather(-1, chosen).argsort(dim=-1, descending=True, stable=True)
    chosen = chosen.gather(-1, order)
    scores = log_p.gather(-1, chosen)  # (t, S)
    left = scores.flip(-1).logcumsumexp(-1).flip(-1)  # over the candidates that are left at each place
    # Candidate j stands in every sum up to its own place
    slopes = (scores + (-left).logcumsumexp(-1)).exp() - 1
    return (left - scores).sum(-1), torch.zeros_like(log_p).scatter_(-1, chosen, slopes)


def clipped_policy(tile: Tile, advantages: torch.Tensor, clip: float) -> tuple[torch.Tensor, torch.Tensor]:
    """
    max(-r A, -clip(r, 1 - eps, 1 + eps) A) on the sampled token, r = p(y) / p_old(y), 1 where p_old is not known.

    Args:
        tile ([`Tile`]): The tokens.
        advantages (`torch.Tensor` of shape `(t,)`): A, constant.
        clip (`float`): eps.
    """
    logps = tile.on_label(tile.log_p)
    ratio = (logps - sampling_logps(tile)).clamp(-20.0, 20.0).exp()
    free, held = -ratio * advantages, -ratio.clamp(1 - clip, 1 + clip) * advantages
    # Where the clip holds the value it holds it constant
    return torch.maximum(free, held), tile.label_gradient(torch.where(free >= held, free, 0.0))


def sampling_logps(tile: Tile) -> torch.Tensor:
    """log p_old(y), `(t,)`: the student's own where the sampler gave none."""
    logps = tile.on_label(tile.log_p)
    return logps if tile.old_logps is None else torch.where(tile.old_logps.isnan(), logps, tile.old_logps)


def contrast(tile: Tile, right: int, wrong: list[int], margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """
    relu(m + |log p - log q+| - |log p - log q-|) of the sampled token, the mean over the q- that teach it, 0 where q+
    or all q- do not (UniSD, huggingface.co/papers/2605.06597).

    Args:
        tile ([`Tile`]): The tokens.
        right (`int`): View of a right demonstration, q+.
        wrong (`list[int]`): Views of wrong demonstrations, q-. There may be none.
        margin (`float`): m.
    """
    logps = tile.on_label(tile.log_p)
    near = logps - tile.on_label(tile.log_qs[right])
    loss = slope = torch.zeros_like(logps)
    for view in wrong:
        share = tile.taught[right] * tile.taught[view] / tile.taught[wrong].sum(0).clamp(min=1)
        far = logps - tile.on_label(tile.log_qs[view])
        value = margin + near.abs() - far.abs()
        loss = loss + share * value.clamp(min=0.0)
        slope = slope + share * (near.sign() - far.sign()) * (value > 0)
    return loss, tile.label_gradient(slope)


def mean_gap(tile: Tile) -> torch.Tensor:
    """log q(y) - log p_old(y), `(t,)`, the mean over the views that teach the token, 0 where none does."""
    gaps = torch.stack([tile.on_label(log_q) for log_q in tile.log_qs]) - sampling_logps(tile)
    return (gaps * tile.taught).sum(0) / tile.taught.sum(0).clamp(min=1)
