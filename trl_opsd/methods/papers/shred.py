# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Unlearning: a text that the model is to forget is trained once more, and the tokens that it finds hardest are demoted in
the target. These carry what was memorised. At all others the target is the model as it was, so that nothing else
changes.

    F = the lowest share of the text's tokens by q(x_t), of the frozen model that reads the same text
    q'_t(v) = q_t(v) 1[v not in V_t] / Z_t,  V_t = {x_t}, with `nucleus` also the top tokens that hold this mass
    L = mean over t of  KL(q'_t || p_t) in F,  KL(q_t || p_t) elsewhere

The text is a column, named by `given` of `turns`; the teacher is the `base` weights under the bare prompt. Options:
`share` of a text's tokens that are demoted, and `nucleus`, 0 for none. `num_loss_tokens_to_skip` leaves the first
tokens of a text alone.

**Changed**: targets over the whole vocabulary, where the project stores the top-k of the frozen model. A token whose
V_t leaves the frozen model less than 1e-4 has no target: it is left out, and counted in
`self_distillation/shred/left_out` as far as x_t alone decides that. Published is neither k nor the nucleus' mass.

**Fails**, says the project, with all tokens demoted at a learning rate of 1e-5: little is then forgotten. 2e-5 is its
rate that forgets. It was not tried here beyond a tiny model. Texts that the model never knew have no tokens to demote.
"""

import torch

from trl_opsd.losses import AuxiliaryLoss, Tile, TokenStats, TokenWeight
from trl_opsd.methods.base import Method, StepContext, TokenSignals
from trl_opsd.options import Share


LEAST = 1e-4  # of Z_t


def lowest(logps: torch.Tensor, rows: torch.Tensor, share: float) -> torch.Tensor:
    """
    Mask of the lowest share of each row's tokens, `(N,)`: floor(share n) of n, of equal ones the first.

    Args:
        logps (`torch.Tensor` of shape `(N,)`): By which they are ranked.
        rows (`torch.Tensor` of shape `(N,)`): Row of each.
    """
    by_value = logps.argsort(stable=True)
    order = by_value[rows[by_value].argsort(stable=True)]  # row by row, each in the order of its values
    _, place, counts = rows[order].unique_consecutive(return_inverse=True, return_counts=True)
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - first[place]
    chosen = torch.zeros_like(rows, dtype=torch.bool)
    # In float64, and past its rounding: 0.29 of 100 is 29
    chosen[order] = rank < (counts[place].double() * share + 1e-9).floor()
    return chosen


def demoted(log_q: torch.Tensor, labels: torch.Tensor, nucleus: float) -> torch.Tensor:
    """V_t as a mask, `(t, V)`: the label, and the fewest top tokens that hold the mass `nucleus` together."""
    mask = torch.zeros_like(log_q, dtype=torch.bool).scatter_(-1, labels.unsqueeze(-1), True)
    if nucleus > 0:
        q, ids = log_q.exp().sort(dim=-1, descending=True, stable=True)
        mask.scatter_(-1, ids, (q.cumsum(-1) - q < nucleus) | mask.gather(-1, ids))
    return mask


def _in_f(stats: TokenStats, share: float) -> torch.Tensor:
    return lowest(stats.teacher_logps[0], stats.rows, share)


def token_weight(step_context: StepContext) -> TokenWeight:
    """The divergence counts outside of F."""
    return lambda stats: 1.0 - _in_f(stats, step_context.options["share"]).to(stats.student_logps.dtype)


def auxiliary_loss(step_context: StepContext) -> AuxiliaryLoss:
    share, nucleus = step_context.options["share"], step_context.options["nucleus"]

    def loss(tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
        log_q = tile.log_qs[0]
        mask = demoted(log_q, tile.labels, nucleus)
        log_z = log_q.masked_fill(mask, -torch.inf).logsumexp(-1, keepdim=True)
        counts = _in_f(tile.all_tokens, share)[tile.token_slice] & (log_z.squeeze(-1) >= torch.tensor(LEAST).log())
        target = (log_q - log_z).exp().masked_fill(mask | ~counts.unsqueeze(-1), 0.0)
        value = (target * (log_q - log_z - tile.log_p).masked_fill(target == 0, 0.0)).sum(-1)
        return value, (tile.p - target) * counts.unsqueeze(-1)

    return loss


def metrics(signals: TokenSignals) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Share of the distilled tokens that are demoted, and of those, the ones that the label alone leaves no target."""
    rows, _ = places = signals.mask.nonzero(as_tuple=True)
    logps = signals.teacher_logps[0][places]
    chosen = lowest(logps, rows, signals.options["share"])
    left_out = chosen & (-logps.expm1() < LEAST)
    count = chosen.sum()
    return {"shred/demoted": (count, torch.tensor(len(rows))), "shred/left_out": (left_out.sum(), count)}


METHOD = Method(
    title="SHRED",
    paper="2605.07482",
    label="paper",
    needs="texts to forget, in a column",
    roles=("given",),
    defaults={
        "distillation_alpha": 0.0,
        "teacher_model_kind": "base",
        "privileged_source": "bare",
        "turns": {"slots": ["given"], "given": "forget"},
        "policy_weight": 0.0,
    },
    options={"share": 0.2, "nucleus": 0.0},
    option_types={"share": Share, "nucleus": Share},
    token_weight=token_weight,
    auxiliary_loss=auxiliary_loss,
    needs_all_tokens=True,
    metrics=metrics,
)
