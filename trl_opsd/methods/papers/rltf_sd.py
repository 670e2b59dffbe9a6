# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The student answers, a critic comments on what is wrong, and the student answers again with the comment in view. A
better second answer is then trained as an answer to the bare prompt, with an advantage over the first ones: the words
of the critic become weights.

Beside this the first turns learn by GRPO, with a part of the second turn's reward as their return, and the second turns
by theirs.

    first    A = R0 - mean R0,  R0 = r0 + gamma r1
    second   A = r1 - mean r1
    distil   A_t = c (r1 - mean r0) 1[log p(y1_t | x) >= floor]

Means are over the units of a prompt that have the turn, and nothing is divided by the deviation. A `distil` row has
the second turn's text y1 under the bare prompt x, and its ratio starts at 1.

Options: `coefficient` is c, which rises from 0 over the share `ramp` of the training; `gamma`; `floor` leaves tokens
out that the student would not have written, and at -1000 none; `baseline` is `first` as above, `second` for mean r1, or
`none`.

With rewards of 0 and 1 the last is c times the cross-entropy of right second turns, the paper's SFT variant. Slots
without `second` train the second turn under the bare prompt alone.

**Changed**: TRL's mean over tokens in place of a sum. The critic is `critic` with the student's own weights; the paper
asks a model of 235B.

The floor is compared with log-probabilities under x at the sampling, as far as TRL has them, and
with the current ones else, which are the same at the first use of a batch.

**Fails** where second turns are no better than first ones: `distil` rows then have negative advantages on average, and
push down what the student hardly says. Watch `turns/second_reward` beside `turns/first_reward`.
"""

import math
from typing import Annotated

import torch

from trl_opsd.methods.base import Method, StepContext, TokenSignals
from trl_opsd.methods.unit_credit import first_and_second, mean, second_totals
from trl_opsd.options import NonNegative, OneOf, Share
from trl_opsd.rollouts.rollout import Group


def of_group(group: Group, options: dict, coefficient: float) -> list[float]:
    """Advantages of the rollouts of a group by their roles, 0 where there is no reward."""
    baselines = {
        "first": mean(one.total for one in group if one.role == "first"),
        "second": mean(second_totals(group).values()),
        "none": 0.0,
    }
    distil = [coefficient * (one.total - baselines[options["baseline"]]) for one in group]
    pairs = zip(group, first_and_second(group, options["gamma"]), distil, strict=True)
    values = [own if one.role == "distil" else other for one, other, own in pairs]
    return [0.0 if math.isnan(value) else value for value in values]


def credit(groups: list[Group], step_context: StepContext) -> list[list[float]]:
    options = step_context.options
    risen = min(step_context.progress / options["ramp"], 1.0) if options["ramp"] else 1.0
    coefficient = options["coefficient"] * risen
    return [of_group(group, options, coefficient) for group in groups]


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`, without those of tokens of `distil` rows that were too unlikely."""
    made = signals.advantages.expand_as(signals.mask)
    logps = signals.student_logps
    if signals.old_logps is not None:
        logps = torch.where(signals.old_logps.isnan(), logps, signals.old_logps)
    return made * (1 - signals.role("distil") * (logps < signals.options["floor"]))


METHOD = Method(
    title="Expanding the Capabilities of Reinforcement Learning via Text Feedback",
    paper="2602.02482",
    label="code",
    needs="a reward, and a critic or another source for the second turn",
    needs_reward=True,
    defaults={
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "teacher_model_kind": "live",
        "privileged_source": "none",
        "turns": {
            "slots": ["first", "second", "distil"],
            "source": {"with_attempt": "critic"},
            "when": "failed",
            "otherwise": "idle",
        },
    },
    options={"coefficient": 0.1, "gamma": 0.1, "floor": -5.0, "ramp": 0.0, "baseline": "first"},
    option_types={
        "coefficient": NonNegative,
        "gamma": Share,
        "floor": float,
        "ramp": Share,
        "baseline": Annotated[str, OneOf(("first", "second", "none"))],
    },
    roles=("first", "distil"),
    credit=credit,
    advantages=advantages,
)
