# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Attract where the student is sure, repel where it is not: at tokens of low entropy the student is pulled to the teacher
that reads the context, at the few of high entropy, where ways part, it is pushed off, so that it keeps exploring.

    L = mean over t of w_t GJSD_0.5(q_t, p_t),  w_t = 1 where H(p_t) <= its (1 - share) quantile, else -repel

Options: `share` of the tokens of a micro-batch that are repelled, `repel` the weight of that.

**Changed**: only an abstract is known to us; divergence, threshold and both values are a proposed reading. The
Jensen-Shannon divergence is bounded, and so is the repulsion.

**Fails** where high entropy means ignorance and not a choice: there the teacher should be followed.
"""

import torch

from trl_opsd.losses import TokenStats, TokenWeight
from trl_opsd.losses.token_signals import quantile
from trl_opsd.methods.base import Method, StepContext
from trl_opsd.options import NonNegative, Share


def token_weight(step_context: StepContext) -> TokenWeight:
    options = step_context.options

    def factor(stats: TokenStats) -> torch.Tensor:
        entropy = stats.student_entropy
        return torch.where(entropy <= quantile(entropy, 1 - options["share"]), 1.0, -options["repel"]).to(entropy)

    return factor


METHOD = Method(
    title="DASD",
    paper="2605.22263",
    label="proposed reading",
    needs="a context in a column",
    defaults={"distillation_alpha": 0.5, "teacher_model_kind": "base"},
    options={"share": 0.2, "repel": 0.1},
    option_types={"share": Share, "repel": NonNegative},
    token_weight=token_weight,
    needs_all_tokens=True,
    micro_batch_statistics=True,
)
