# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Tokens where the student is less sure than the teacher count more; at the beginning of an answer the student's
candidates are put in the teacher's order; and the student becomes surer of itself. Made for a larger teacher, here with
the one that reads the context.

    L = mean w_t GJSD_0.9(q_t, p_t) + entropy mean_{H_t >= its 10 % quantile} H(p_t) + ranking mean_{t early} PL_t
    w_t = sigmoid(H(p_t) - H(q_t)),  PL = -sum_i [z_i - log sum_{j >= i} exp z_j], z of S_10(p) in the order of q

A token is early if the entropies of its row up to and with its own are less than a tenth of the row's sum; a short row
may have none. Options: `entropy`, `ranking` (weights), `candidates`, `early`, `least` (the quantile).

**Changed**: PL is that of the textbook; the shipped code sums the candidates before i, not those that are left. "Early"
is counted in each row, in the code over all rows as one. Means and the quantile are of a micro-batch.

**Fails** where the student must stay undecided: the entropy term sharpens everything. With a context as teacher the
divergence is small, and the other two terms are nearly all of the loss (sums: 0.02 of 4): weigh them down.
"""

import torch

from trl_opsd.losses import AuxiliaryLoss, Tile, TokenStats, TokenWeight
from trl_opsd.losses.token_signals import quantile, self_normalized
from trl_opsd.methods.base import Method, StepContext
from trl_opsd.options import Count, NonNegative, Share


def cumulative_share(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """
    Cumulative share: how much of its row's sum has come up to and with each token, `(N,)`, 1 for the last.

    Args:
        values (`torch.Tensor` of shape `(N,)`): Not negative.
        rows (`torch.Tensor` of shape `(N,)`): Row of each token. The tokens of a row stand together, in their order.
    """
    _, which = rows.unique_consecutive(return_inverse=True)
    many = int(which[-1]) + 1 if which.numel() else 0
    totals = values.new_zeros(many).index_add_(0, which, values)
    start = totals.cumsum(0) - totals
    return (values.cumsum(0) - start[which]) / totals[which].clamp(min=torch.finfo(values.dtype).tiny)


def scaled(term: tuple[torch.Tensor, torch.Tensor], factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Product of a loss and its gradient with a constant factor of each token, `(t,)`."""
    return factor * term[0], factor.unsqueeze(-1) * term[1]


def entropy(log_p: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Entropy H = -sum_v p_v log p_v, and its gradient dH/dz_v = -p_v (log p_v + H).

    Args:
        log_p, p (`torch.Tensor` of shape `(t, V)`): Log-probabilities and probabilities.
    """
    value = -(p * log_p).sum(-1)
    return value, -p * (log_p + value.unsqueeze(-1))


def plackett_luce(log_p: torch.Tensor, log_q: torch.Tensor, candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Negative log-likelihood of the teacher's order of the student's most likely tokens, under Plackett and Luce:
    -sum_i [z_i - log sum_{j >= i} exp z_j], with z the student's logits in the order of falling q.

    Args:
        log_p, log_q (`torch.Tensor` of shape `(t, V)`): Log-probabilities.
        candidates (`int`): Number S of these tokens.
    """
    chosen = log_p.topk(min(candidates, log_p.shape[-1]), dim=-1).indices
    order = log_q.gather(-1, chosen).argsort(dim=-1, descending=True, stable=True)
    chosen = chosen.gather(-1, order)
    scores = log_p.gather(-1, chosen)  # (t, S)
    left = scores.flip(-1).logcumsumexp(-1).flip(-1)  # over the candidates that are left at each place
    # Candidate j stands in every sum up to its own place
    slopes = (scores + (-left).logcumsumexp(-1)).exp() - 1
    return (left - scores).sum(-1), torch.zeros_like(log_p).scatter_(-1, chosen, slopes)


def token_weight(step_context: StepContext) -> TokenWeight:
    return lambda stats: (stats.student_entropy - stats.teacher_entropy).sigmoid()


def auxiliary_loss(step_context: StepContext) -> AuxiliaryLoss:
    options = step_context.options

    def factors(stats: TokenStats):
        unsure = stats.student_entropy >= quantile(stats.student_entropy, options["least"])
        early = cumulative_share(stats.student_entropy, stats.rows) < options["early"]
        return (self_normalized(chosen.to(stats.student_entropy), stats.taught.any(0)) for chosen in (unsure, early))

    def term(tile: Tile):
        unsure, early = (factor[tile.token_slice] for factor in factors(tile.all_tokens))
        log_q = sum(one * taught for one, taught in zip(tile.log_qs, tile.taught.unsqueeze(-1), strict=True))
        rank = scaled(plackett_luce(tile.log_p, log_q, options["candidates"]), options["ranking"] * early)
        sharp = scaled(entropy(tile.log_p, tile.p), options["entropy"] * unsure)
        return rank[0] + sharp[0], rank[1] + sharp[1]

    return term


METHOD = Method(
    title="TSD-KD: Token-Selective Dual Knowledge Distillation",
    paper="2603.13260",
    authors="Kim and Baek",
    label="code",
    needs="a context in a column",
    reads_teacher_entropy=True,
    defaults={"distillation_alpha": 0.9, "teacher_model_kind": "base"},
    options={"entropy": 1.0, "ranking": 0.1, "candidates": 10, "early": 0.1, "least": 0.1},
    option_types={"entropy": NonNegative, "ranking": NonNegative, "candidates": Count, "early": Share, "least": Share},
    token_weight=token_weight,
    needs_all_tokens=True,
    micro_batch_statistics=True,
    auxiliary_loss=auxiliary_loss,
)
