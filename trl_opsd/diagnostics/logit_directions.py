# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Directions in which a token's logits are pushed: by the expected score, and by a distillation loss.

At a prefix, the student takes candidate j with probability P_j, and S_j is its expected score if it does. The ascent of
the expected score on the logits is P_j (S_j - sum_k P_k S_k): the ideal direction (Unmasking On-Policy Distillation,
2605.10889). The descent of a loss is P_j (f_j - sum_k P_k f_k), where f = q/p for the forward KL and f = log(q/p) for
the reverse KL.

Legend: J candidates, V vocabulary, K views; p student, q teacher.
"""

from dataclasses import dataclass

import torch

from trl_opsd.losses import DivergenceSpec, Pair, Tile, TokenStats, one_target, token_loss
from trl_opsd.losses.divergences import LOG_ZERO


NONE = 1e-5  # length of a direction below which it is rounding: gradients on logits are of the size of 1


@dataclass(frozen=True)
class TokenPlace:
    """
    A token of a rollout, as losses see it beside the distributions.

    Args:
        label (`int`): The token that was sampled.
        relative_position (`float`): As in [`~trl_opsd.losses.TokenStats`].
        weights (`list[float]` of length K): Weight of each view.
    """

    label: int
    relative_position: float
    weights: list[float]


def ideal_direction(probabilities: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """
    Ascent of the expected score on the candidates' logits, `(J,)`.

    Args:
        probabilities (`torch.Tensor` of shape `(J,)`): Of the candidates, summing to 1.
        scores (`torch.Tensor` of shape `(J,)`): Expected score after each.
    """
    return probabilities * (scores - (probabilities * scores).sum())


def among(gradient: torch.Tensor, p: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """
    Descent of a loss on the candidates' logits, `(J,)`, as if there were no other tokens: P_j (f_j - sum_k P_k f_k),
    where f = -gradient / p over the vocabulary.

    Args:
        gradient, p (`torch.Tensor` of shape `(V,)`): Gradient on the logits, and the student's probabilities.
        candidates (`torch.Tensor` of shape `(J,)`): Their token ids.
    """
    descent, own = -gradient[candidates].double(), p[candidates].double()
    return (descent - own / own.sum() * descent.sum()) / own.sum()


def loss_gradient(
    log_p: torch.Tensor, log_qs: list[torch.Tensor], spec: DivergenceSpec, place: TokenPlace
) -> torch.Tensor:
    """
    Gradient on a token's logits, `(V,)`, of the loss that a run has there, with what its method adds, up to a factor.

    Args:
        log_p (`torch.Tensor` of shape `(V,)`): Log-probabilities of the student at the temperature of the loss.
        log_qs (`list[torch.Tensor]` of length K): Those of the teacher under each view.
        spec ([`DivergenceSpec`]): The loss. It must not look at all tokens at once.
        place ([`TokenPlace`]): The token.
    """
    log_p, *log_qs = (one.clamp(min=LOG_ZERO).unsqueeze(0) for one in (log_p, *log_qs))
    p, label = log_p.exp(), torch.tensor([place.label], device=log_p.device)
    plain = weights = log_p.new_tensor(place.weights).unsqueeze(1)  # (K, 1)
    known = log_p.new_tensor([place.relative_position]), label.new_zeros(1), plain != 0
    if spec.token_weight is not None:
        weights = weights * spec.token_weight(_token_stats(log_p, log_qs, label, *known))
    targets = [(log_q, log_q.exp()) for log_q in log_qs]
    if spec.target is not None:
        total = weights.sum(0, keepdim=True)
        shares = torch.where(total == 0, 1 / len(weights), weights / total)
        targets, weights = [one_target(log_p, log_qs, shares, spec.target)], total
    views = zip(targets, weights, strict=True)
    gradient = sum(token_loss(Pair(log_p, log_q, p, q), spec).gradient * weight for (log_q, q), weight in views)
    if spec.auxiliary_loss is not None:
        tile = Tile(log_p, p, log_qs, label, None, plain != 0, slice(0, 1))
        gradient = gradient + spec.auxiliary_loss(tile)[1] * plain.sum()
    return gradient.squeeze(0)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Cosine of two directions; `None` where one of them is none."""
    lengths = one.norm(), other.norm()
    if min(lengths) < NONE:
        return None
    return float((one * other).sum() / (lengths[0] * lengths[1]))


def _token_stats(
    log_p: torch.Tensor,
    log_qs: list[torch.Tensor],
    label: torch.Tensor,
    relative_positions: torch.Tensor,
    rows: torch.Tensor,
    taught: torch.Tensor,
) -> TokenStats:
    both = torch.cat([log_p, *log_qs])
    logps, entropies = both[:, label], -(both.exp() * both).sum(-1, keepdim=True)  # (1 + K, 1)
    return TokenStats(logps[1:], entropies[1:], logps[0], entropies[0], relative_positions, rows, taught)
