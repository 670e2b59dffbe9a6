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

import torch

from trl_opsd.losses import AuxiliaryLoss, Tile, TokenStats, TokenWeight
from trl_opsd.losses.token_signals import quantile, self_normalized
from trl_opsd.methods.base import Method, StepContext
from trl_opsd.options import NonNegative, OneOf


def variance_of_views(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Variance of `values`, `(K, N)`, over the views that are `known`, `(N,)`; 0 of fewer than two."""
    count = known.sum(0).clamp(min=1)
    mean = (values * known).sum(0) / count
    return ((values - mean) ** 2 * known).sum(0) / count


def token_agreement(logps: torch.Tensor, taught: torch.Tensor, gamma: float) -> torch.Tensor:
    """max(1 / (1 + gamma d_t), 0.01), of shape `(N,)`; the arguments are those of [`agreement`]."""
    distance = variance_of_views(logps, taught)
    scaled = torch.where((high := quantile(distance, 0.95)) > 0, distance / high, 0.0).clamp(max=10.0)
    return (1 / (1 + gamma * scaled)).clamp(min=0.01)


def sequence_agreement(logps: torch.Tensor, taught: torch.Tensor, rows: torch.Tensor, gamma: float) -> torch.Tensor:
    """max(exp(-gamma var_k mean_t log q_k(y_t)), 1e-6), of shape `(N,)`, one value for all tokens of a row."""
    _, which = rows.unique(return_inverse=True)
    zeros = logps.new_zeros(len(logps), int(which.max()) + 1 if which.numel() else 0)
    sums, counts = (zeros.index_add(1, which, one) for one in (logps * taught, taught.to(logps)))
    return (-gamma * variance_of_views(sums / counts.clamp(min=1), counts > 0)).exp().clamp(min=1e-6)[which]


def agreement(how: str, logps: torch.Tensor, taught: torch.Tensor, rows: torch.Tensor, gamma: float) -> torch.Tensor:
    """Agreement weights `(N,)` from log q_k(y) and whether view k teaches the token, both `(K, N)`, and its row."""
    if how == "none":
        return torch.ones_like(rows, dtype=logps.dtype)
    return token_agreement(logps, taught, gamma) if how == "token" else sequence_agreement(logps, taught, rows, gamma)


def contrast(tile: Tile, right: int, wrong: list[int], margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Margin loss of the sampled token, the mean over the views `wrong` that teach it, and its gradient on logits."""
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


def feature_matching(student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor, view: int) -> torch.Tensor:
    """Weighted sum of |h_t - g_t|^2 / H over the tokens that `view` teaches, from `(M, H)`, `(K, M, H)`, `(K, M)`."""
    kind = torch.promote_types(student.dtype, torch.float32)
    distance = (student.to(kind) - teacher[view].to(kind)).square().mean(-1)
    return (weights.sum(0) * (weights[view] != 0) * distance).sum()


def token_weight(step_context: StepContext) -> TokenWeight:
    options = step_context.options

    def factor(stats: TokenStats):
        main, others = stats.taught[step_context.view("privileged")], step_context.family("context")
        known = stats.teacher_logps[others], stats.taught[others], stats.rows, options["gamma"]
        return options["divergence"] * self_normalized(agreement(options["agreement"], *known), main)

    return factor


def auxiliary_loss(step_context: StepContext) -> AuxiliaryLoss:
    options = step_context.options

    def term(tile: Tile):
        pair = step_context.view("privileged"), step_context.family("wrong")
        return tuple(options["contrast"] * part for part in contrast(tile, *pair, options["margin"]))

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
    option_types={"agreement": OneOf(("none", "token", "sequence"))}
    | dict.fromkeys(("gamma", "contrast", "margin", "matching", "divergence"), NonNegative),
    target=lambda step_context: lambda log_p, log_qs, shares: log_qs[step_context.view("privileged")],
    token_weight=token_weight,
    needs_all_tokens=True,
    micro_batch_statistics=True,
    auxiliary_loss=auxiliary_loss,
    hidden_state_loss=lambda step_context: (
        lambda *s: step_context.options["matching"] * feature_matching(*s, step_context.view("privileged"))
    ),
)
