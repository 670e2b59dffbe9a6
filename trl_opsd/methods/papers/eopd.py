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
from trl_opsd.losses.auxiliary_losses import clipped_policy, mean_gap
from trl_opsd.losses.mixing import top_k_alone
from trl_opsd.losses.targets import arithmetic_mean
from trl_opsd.methods.base import Method, StepContext


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
    defaults={"distillation_alpha": 0.0, "teacher_model_kind": "base"},
    options={"threshold": 0.8, "topk": 16, "clip": 0.2},
    target=target,
    token_weight=token_weight,
    auxiliary_loss=auxiliary_loss,
)
