# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The part of the gap that only this row's context gives: a teacher that reads the contexts of other rows shows what any
context would do, such as a liking for boilerplate, and that part is taken off. What is left speaks of this input.

    A_t = A + Delta_t - lambda (log mean_k q(y_t | x, c_k) - log p(y_t)),  Delta_t = log q(y_t | x, c) - log p(y_t)

c is the row's own context, c_1 ... c_K are those of other rows. Several own contexts count by the mean of their
probabilities, as those of other rows do. Option: `share` is lambda; at 1 the student's own probability cancels.

**Changed**: only the abstract is known to us, which says that a contrast within the batch isolates the input-specific
part; the formula is our reading of it, and so are K = 2 and lambda = 1.

The paper contrasts unrelated inputs, we the contexts of unrelated rows under the same input. A token without either
kind of view has the verifier's advantage.

**Fails** where all rows share one context, such as a rule: then nothing is left.
"""

import torch

from trl_opsd.losses import contrast, log_mean
from trl_opsd.methods.base import Method, TokenSignals
from trl_opsd.options import Share


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own at tokens without contrast."""
    own, other = signals.step_context.family("own"), signals.step_context.family("other")
    specific = contrast(signals.teacher_logps, signals.taught, own, other)
    both = (signals.taught[own].any(0) & signals.taught[other].any(0)) * signals.mask
    gap = (log_mean(signals.teacher_logps[own], signals.taught[own]) - signals.student_logps) * both
    share = signals.options["share"]
    return signals.advantages + signals.scale * ((1 - share) * gap + share * specific)


METHOD = Method(
    title="From Generic Correlation to Input-Specific Credit in On-Policy Self Distillation",
    paper="2605.11613",
    authors="Guobin Shen and Lei Huang and Xiang Cheng and Chenxiao Zhao and Jindong Li and Dongcheng Zhao and Xing Yu",
    label="proposed reading",
    needs="a column with a context of each row's own",
    required=("own", "other"),
    defaults={
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "teacher_model_kind": "live",
        "privileged_source": {"all_of": [{"column": {"name": "own"}}, {"other_row": {"name": "other", "count": 2}}]},
    },
    options={"share": 1.0},
    option_types={"share": Share},
    advantages=advantages,
)
