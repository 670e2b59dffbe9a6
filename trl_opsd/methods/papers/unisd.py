# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Distillation from a demonstration with four stabilisers: tokens on which other teachers disagree count less, the student
leaves what a wrong demonstration says, its hidden states follow the teacher's, the teacher is a moving average.

    L = sum w_t min(KL(q_t||p_t), 10) / sum w_t + matching mean |h_t - g_t|^2 / H
        + contrast mean relu(margin + |log p - log q+| - |log p - log q-|),  w_t = max(1 / (1 + gamma d_t), 0.01)

d_t is the variance of log q_k(y_t) over the views `context-k` by its 95 % quantile, at most 10. Options: `agreement`
("token", "sequence" for exp(-gamma var_k mean_t log q_k), "none"), `gamma`, `contrast`, `margin`, `matching`,
`divergence` (factor on the first term). A part at 0 or "none" needs no view; a source gives `privileged` and the rest.

**Changed**: the wrong demonstration is a failed rollout, not a cached one; sums and the quantile are of a micro-batch;
log q_k is at the distillation's temperature, there at 1. Not offered: ranges, induced contexts, a clip at a quantile.

**Fails** where all teachers share a mistake, or nothing fails (no contrast).
"""

from trl_opsd.losses import AuxiliaryLoss, Tile, TokenStats, TokenWeight
from trl_opsd.losses.agreement import agreement, mean_one
from trl_opsd.losses.auxiliary_losses import contrast
from trl_opsd.losses.matching import feature_matching
from trl_opsd.methods.base import Method, StepContext


def token_weight(step_context: StepContext) -> TokenWeight:
    def factor(stats: TokenStats):
        main, others = stats.taught[step_context.view("privileged")], step_context.family("context")
        known = stats.teacher_logps[others], stats.taught[others], stats.rows, step_context.options["gamma"]
        return step_context.options["divergence"] * mean_one(agreement(step_context.options["agreement"], *known), main)

    return factor


def auxiliary_loss(step_context: StepContext) -> AuxiliaryLoss:
    def term(tile: Tile):
        pair = step_context.view("privileged"), step_context.family("wrong")
        return tuple(
            step_context.options["contrast"] * part for part in contrast(tile, *pair, step_context.options["margin"])
        )

    return term


SOURCES = ["column", {"other_row": {"name": "context", "count": 2}}, {"wrong_demonstration": {"name": "wrong"}}]
METHOD = Method(
    title="UniSD",
    paper="2605.06597",
    authors="Jin and others",
    label="code",
    needs="a demonstration in a column, and a reward for the contrast",
    required=("privileged",),
    defaults={"distillation_token_clip": 10.0, "teacher_model_kind": "ema", "teacher_update_rate": 0.1}
    | {"teacher_sync_steps": 10, "policy_weight": 0.0, "privileged_source": {"all_of": SOURCES}},
    options={"agreement": "token", "gamma": 1.0, "contrast": 0.1, "margin": 0.5, "matching": 0.1, "divergence": 1.0},
    target=lambda step_context: lambda log_p, log_qs, shares: log_qs[step_context.view("privileged")],
    token_weight=token_weight,
    needs_all_tokens=True,
    auxiliary_loss=auxiliary_loss,
    hidden_state_loss=lambda step_context: (
        lambda *s: step_context.options["matching"] * feature_matching(*s, step_context.view("privileged"))
    ),
)
