# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Tokens where the student is less sure than the teacher count more; at the beginning of an answer the student's
candidates are put in the teacher's order; and the student becomes surer of itself. Made for a larger teacher, here with
the one that reads the context.

    L = mean w_t GJSD_0.9(q_t, p_t) + entropy mean_{H_t >= its 10 % quantile} H(p_t) + ranking mean_{t early} PL_t
    w_t = sigmoid(H(p_t) - H(q_t)),  PL = -sum_i [z_i - log sum_{j >= i} exp z_j], z of S_10(p) in the order of q

A token is early while less than a tenth of its row's entropy is spent. Options: `entropy`, `ranking` (weights),
`candidates`, `early`, `least` (the quantile).

**Changed**: PL is that of the textbook; the shipped code sums the candidates before i, not those that are left. "Early"
is our reading of cumulative normalised entropy; means and the quantile are of a micro-batch.

**Fails** where the student must stay undecided: the entropy term sharpens everything. With a context as teacher the
divergence is small, and the other two terms are nearly all of the loss (sums: 0.02 of 4): weigh them down.
"""

from trl_opsd.losses import AuxiliaryLoss, Tile, TokenStats, TokenWeight
from trl_opsd.losses.agreement import mean_one, quantile, spent_before
from trl_opsd.losses.auxiliary_losses import entropy, plackett_luce, scaled
from trl_opsd.methods.base import Method, StepContext


def token_weight(step_context: StepContext) -> TokenWeight:
    return lambda stats: (stats.student_entropy - stats.teacher_entropy).sigmoid()


def auxiliary_loss(step_context: StepContext) -> AuxiliaryLoss:
    options = step_context.options

    def factors(stats: TokenStats):
        unsure = stats.student_entropy >= quantile(stats.student_entropy, options["least"])
        early = spent_before(stats.student_entropy, stats.rows) < options["early"]
        return (mean_one(chosen.to(stats.student_entropy), stats.taught.any(0)) for chosen in (unsure, early))

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
    defaults={"distillation_alpha": 0.9, "teacher_model_kind": "base"},
    options={"entropy": 1.0, "ranking": 0.1, "candidates": 10, "early": 0.1, "least": 0.1},
    token_weight=token_weight,
    needs_all_tokens=True,
    auxiliary_loss=auxiliary_loss,
)
