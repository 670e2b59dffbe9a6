# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
OPSD whose tokens count by their place: little at the beginning of an answer, where the context's style shows, all of it
from the middle on.

    L = mean over answers of mean over t of w_t sum over v of min(q_v log(q_v / p_v), 0.05)
    w_t = w + (1 - w) sigmoid((x_t - tau) / s),  x_t = (t - 0.5) / T for the t-th of T tokens

Options: `least` (w), `middle` (tau), `softness` (s); the published moderate setting is 0.25, 0.30, 0.10.

**Changed**: nothing known. Prompts are in our own words.

**Fails** as `opsd` does; the gain over it is small (Qwen3-4B, mean of four benchmarks: 70.66 against 70.27).
"""

import torch

from trl_opsd.losses import TokenStats, TokenWeight
from trl_opsd.methods.base import Method, StepContext
from trl_opsd.options import Positive, Share


def token_weight(step_context: StepContext) -> TokenWeight:
    least, middle, softness = (step_context.options[name] for name in ("least", "middle", "softness"))

    def factor(stats: TokenStats) -> torch.Tensor:
        return least + (1 - least) * ((stats.relative_positions - middle) / softness).sigmoid()

    return factor


METHOD = Method(
    title="PW-OPSD",
    paper="2605.21606",
    label="code",
    needs="a reference solution in a column",
    defaults={
        "distillation_alpha": 0.0,
        "distillation_entry_clip": 0.05,
        "distillation_reduction": "sequence_mean",
        "teacher_model_kind": "base",
    },
    options={"least": 0.25, "middle": 0.30, "softness": 0.10},
    option_types={"least": Share, "middle": Share, "softness": Positive},
    token_weight=token_weight,
)
