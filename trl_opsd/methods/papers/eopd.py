# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The sampled token learns the reverse KL as a clipped policy gradient; where the teacher is undecided, one sample says
too little, and the forward KL to its most likely tokens is added.

    L = mean over t of max(-r A, -clip(r, 1 - e, 1 + e) A) + 1[H(q) > tau] sum over v in S_16(q) of q'_v log(q'_v / p_v)
    r = p(y) / p_old(y),  A = sg(log q(y) - log p_old(y)),  q' is q renormalised over the set, p is not

Options: `threshold` (tau, nats), `topk`, `clip` (e).

**Changed**: the teacher reads a context, where the paper's is another model. e is that of the re-implementation that
these formulas are from. Several views: their mean, and H(q) of each opens its share of the gate.

**Fails** like every sampled gradient on long answers. With identical contexts the second term is not 0: the student is
drawn to its own most likely tokens.
"""

import torch

from trl_opsd.losses import AuxiliaryLoss, Target, Tile, TokenWeight
from trl_opsd.losses.targets import arithmetic_mean
from trl_opsd.methods.base import Method, StepContext
from trl_opsd.options import Count, NonNegative


def top_k_alone(log_q: torch.Tensor, k: int) -> torch.Tensor:
    """
    Top-k distribution: q renormalised over its k most likely tokens, as log-probabilities, -inf elsewhere.

    Args:
        log_q (`torch.Tensor` of shape `(N, V)`): Log-probabilities.
        k (`int`): Size of the set.
    """
    top = log_q.topk(min(k, log_q.shape[-1]), dim=-1)
    return torch.full_like(log_q, -torch.inf).scatter_(-1, top.indices, top.values.log_softmax(-1))


def sampling_logps(tile: Tile) -> torch.Tensor:
    """Log-probabilities log p_old(y) at sampling time, `(t,)`: the student's own where the sampler gave none."""
    logps = tile.on_label(tile.log_p)
    return logps if tile.old_logps is None else torch.where(tile.old_logps.isnan(), logps, tile.old_logps)


def mean_gap(tile: Tile) -> torch.Tensor:
    """Mean gap log q(y) - log p_old(y), `(t,)`, over the views that teach the token, 0 where none does."""
    gaps = torch.stack([tile.on_label(log_q) for log_q in tile.log_qs]) - sampling_logps(tile)
    return (gaps * tile.taught).sum(0) / tile.taught.sum(0).clamp(min=1)


def clipped_policy(tile: Tile, advantages: torch.Tensor, clip: float) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Clipped policy gradient loss max(-r A, -clip(r, 1 - eps, 1 + eps) A) of the sampled token, r = p(y) / p_old(y), 1
    where p_old is not known.

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


def target(step_context: StepContext) -> Target:
    return lambda *sides: top_k_alone(arithmetic_mean(*sides), step_context.options["topk"])


def token_weight(step_context: StepContext) -> TokenWeight:
    return lambda stats: (stats.teacher_entropy > step_context.options["threshold"]).to(stats.teacher_entropy)


def auxiliary_loss(step_context: StepContext) -> AuxiliaryLoss:
    def term(tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
        return clipped_policy(tile, mean_gap(tile), step_context.options["clip"])

    return term


METHOD = Method(
    title="EOPD",
    paper="2603.07079",
    label="code",
    needs="a context in a column",
    reads_teacher_entropy=True,
    defaults={"distillation_alpha": 0.0, "teacher_model_kind": "base"},
    options={"threshold": 0.8, "topk": 16, "clip": 0.2},
    option_types={"threshold": NonNegative, "topk": Count, "clip": NonNegative},
    target=target,
    token_weight=token_weight,
    auxiliary_loss=auxiliary_loss,
)
