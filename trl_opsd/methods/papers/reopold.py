# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
On-policy distillation as reinforcement learning, made tolerant. The teacher's log-ratio is the reward of a token, and
it is bounded below, so that single tokens which the teacher rules out do not dominate. At first the tokens beyond that
bound are left out; later only the tokens at which the student is least sure are trained.

    R_t = log q(y_t) - log p(y_t),  floor = log(lambda) / (1 - lambda)
    L = -(sum over t of M_t max(R_t, floor) log p(y_t)) / sum over t of M_t
    M_t = 1[R_t >= floor] before step T, then 1 for the share beta of the tokens with the highest entropy of p

Options: `mixture` is lambda (floor = -2.56), `share` is beta, `steps` is T.

**Changed**: the formulas are as the repository of PW-OPSD (2605.21606) has them. The mask's sum and the highest
entropies are those of the micro-batch. The paper's teacher is another model, for which `teacher_model_kind: checkpoint`
stands; here it reads the solution.

**Fails** where sampled-token distillation fails: the second phase has a fifth of the tokens, and their noise.
"""

import math
from typing import Annotated

import torch

from trl_opsd.losses import mean_over
from trl_opsd.methods.base import Method, TokenSignals
from trl_opsd.options import Index, Interval, PositiveShare


def top_share(values: torch.Tensor, mask: torch.Tensor, share: float) -> torch.Tensor:
    """
    Mask of the largest values, `(B, C)`: 1 at that share of the tokens, rounded up; of equal values all.

    Args:
        values, mask (`torch.Tensor` of shape `(B, C)`): Values, and 1 at the tokens to choose from.
        share (`float`): From 0 to 1.
    """
    ordered = values[mask > 0].sort(descending=True).values
    count = math.ceil(share * len(ordered) - 1e-9)  # 0.28 * 25 is above 7 in floats
    return mask * (values >= ordered[count - 1]) if count else torch.zeros_like(mask)


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own, if there is one, at tokens that are not chosen."""
    options, gap, mask = signals.options, signals.gap, signals.mask
    floor = math.log(options["mixture"]) / (1 - options["mixture"])
    chosen = (gap >= floor) * mask
    if signals.step_context.step >= options["steps"]:
        chosen = top_share(signals.student_entropy, mask, options["share"])
    return signals.advantages + signals.scale * mean_over(chosen, mask) * gap.clamp(min=floor)


METHOD = Method(
    title="Scaling Reasoning Efficiently via Relaxed On-Policy Distillation",
    paper="2603.11137",
    authors="Jongwoo Ko and Sara Abdali and Young Jin Kim and Tianyi Chen and Pashmina Cameron",
    label="code",
    needs="a reference solution in a column",
    defaults={"distillation_mode": "sampled_token", "distillation_alpha": 1.0, "teacher_model_kind": "base"},
    options={"mixture": 0.1, "share": 0.2, "steps": 50},
    option_types={"mixture": Annotated[float, Interval(above=0, below=1)], "share": PositiveShare, "steps": Index},
    advantages=advantages,
    micro_batch_statistics=True,
)
