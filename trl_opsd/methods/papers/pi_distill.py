# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
One model is trained as teacher and as student at once: as pi_T under the prompt with the context, and as pi_S, the
same weights, under the bare prompt.

All texts are sampled with the context in view. The teacher learns from rewards and stays near to the student. The
student learns from the same texts by importance sampling, and by the teacher's KL.

    J = alpha J_T + (1 - alpha) J_S
    J_T = E[R] - beta KL(pi_T || sg pi_S),   J_S = E[(pi_S / sg pi_T) R] - beta KL(sg pi_T || pi_S)

    second   A_t = alpha (A - beta G_t),     G_t = sum over s >= t of g_s,  g_t = log pi_T(y_t) - log pi_S(y_t)
    distil   A_t = (1 - alpha) (w_t A + beta),  w_t = exp(-g_t), 0 where GRPO's clip lets nothing through

A is the reward, normalised within the group. The advantages of `distil` rows have the gradient of GRPO's clipped ratio
of pi_S to pi_T, and beta there is the exact gradient of the KL in expectation.

Options: `alpha`; `beta`; `clip`, how far w may be from 1; `horizon`, `rest` as above, or `token` for g_t
in place of G_t, which is biased and calmer.

**Changed**: the KL is estimated from the sampled text, which is equal in expectation. Groups whose rewards are all the
same have A = 0 and are kept, as the KL still counts. The penalty on words that give the context away is left out, as it
had no effect.

TRL's own ratio is for later uses of a batch: leave `num_iterations` at 1.

**Fails** where the first gap is large: w is then 0 or tiny at most tokens, and the teacher's KL is all that is left.
Texts that quote the context score well and teach the student nothing that it can say: watch `leak/quotes`.
"""

import math
from typing import Annotated

import torch

from trl_opsd.methods.base import Method, StepContext, TokenSignals
from trl_opsd.methods.unit_credit import mean
from trl_opsd.options import NonNegative, OneOf, Share
from trl_opsd.rollouts.rollout import Group


def credit(groups: list[Group], step_context: StepContext) -> list[list[float]]:
    """Reward of each unit's text, less the group's mean and over its deviation, in both of its rows."""
    found = []
    for group in groups:
        rewards = [one.total for one in group if one.role == "second" and not math.isnan(one.total)]
        center, count = mean(rewards), max(len(rewards) - 1, 1)
        spread = math.sqrt(sum((value - center) ** 2 for value in rewards) / count) + 1e-4
        scored = [one.role in ("second", "distil") and not math.isnan(one.total) for one in group]
        found.append([(one.total - center) / spread if kept else 0.0 for one, kept in zip(group, scored, strict=True)])
    return found


def advantages(signals: TokenSignals) -> torch.Tensor:
    options, reward, mask = signals.options, signals.advantages, signals.mask
    gap = signals.gap * mask  # of the other prompt's probability to this one's
    ahead = -gap  # g in `second` rows, whose teacher reads the bare prompt
    if options["horizon"] == "rest":
        ahead = ahead.flip(1).cumsum(1).flip(1)
    ratio = (-gap).exp()  # exp(-g) in `distil` rows, whose teacher reads the context
    open_ = torch.where(reward > 0, ratio < 1 + options["clip"], ratio > 1 - options["clip"])
    beta = options["beta"] * signals.scale * mask
    second = options["alpha"] * (reward - beta * ahead)
    distil = (1 - options["alpha"]) * (ratio * open_ * reward + beta)
    return signals.role("second") * second + signals.role("distil") * distil


METHOD = Method(
    title="Privileged Information Distillation for Language Models",
    paper="2602.04942",
    label="paper",
    needs="a reward, and a context in a column",
    needs_reward=True,
    defaults={
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "teacher_model_kind": "live",
        "privileged_source": {"turn_context": {"roles": ["second", "distil"], "reader": "live"}},
        "turns": {"slots": ["second", "distil"], "source": "column", "attempt": False, "otherwise": "idle"},
    },
    options={"alpha": 0.5, "beta": 0.25, "clip": 0.2, "horizon": "rest"},
    option_types={
        "alpha": Share,
        "beta": NonNegative,
        "clip": Share,
        "horizon": Annotated[str, OneOf(("rest", "token"))],
    },
    roles=("second", "distil"),
    credit=credit,
    advantages=advantages,
)
