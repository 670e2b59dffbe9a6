# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Losses beside a divergence, each with its gradient in closed form: of shape `(t,)`, and on the tempered logits, `(t, V)`.

Legend: t tokens, V vocabulary, S candidates; p student, q teacher; y the sampled token.
"""

import torch

from trl_opsd.losses.weighing import Tile


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


def contrast(
    tile: Tile, log_right: torch.Tensor, log_wrong: torch.Tensor, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    relu(m + |log p - log q+| - |log p - log q-|) of the sampled token (UniSD, huggingface.co/papers/2605.06597).

    Args:
        tile ([`Tile`]): The tokens.
        log_right, log_wrong (`torch.Tensor` of shape `(t, V)`): log q+ and log q-, of a right and a wrong demonstration.
        margin (`float`): m.
    """
    right, wrong = (tile.on_label(tile.log_p) - tile.on_label(log_q) for log_q in (log_right, log_wrong))
    loss = margin + right.abs() - wrong.abs()
    return loss.clamp(min=0.0), tile.label_gradient((right.sign() - wrong.sign()) * (loss > 0))
