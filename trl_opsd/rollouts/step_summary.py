# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""[`StepSummary`], the statistics of a finished optimizer step, for methods and sources that follow the training."""

from dataclasses import dataclass, field
from typing import Any


State = dict[str, float]


@dataclass(frozen=True)
class StepSummary:
    """
    Globally reduced statistics of a finished optimizer step.

    Args:
        step (`int`): Optimizer steps that are done, this one too.
        state (`dict[str, float]`): The method's state before this step.
        options (`dict[str, Any]`): The method's own options.
        loss (`float`): Mean distillation loss of a token in this step.
        reward (`float`): Mean total reward of the last generation batch, `nan` without rewards.
        truncated (`float`): Share of its rollouts that were cut at the maximum length.
        mean_length, tail_length (`float`): Mean and 95th percentile of its lengths in tokens.
        logged (`dict[str, float]`): Token metrics of the step, `self_distillation/NAME` in the log, by name, as means
            over its tokens. Empty without distilled tokens.
        progress (`float`): Share of the training that is done, from 0 to 1.
    """

    step: int
    state: State
    options: dict[str, Any]
    loss: float
    reward: float
    truncated: float
    mean_length: float
    tail_length: float
    logged: dict[str, float] = field(default_factory=dict)
    progress: float = 0.0
