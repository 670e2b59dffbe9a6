# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The target moves from the student to the teacher: their logits are interpolated, and the teacher's share grows with time
and faster while the loss falls. Made for another, larger teacher; here a context's first targets are softened.

    L = mean over t of KL(m_t || p_t),  m = softmax((1 - s) sg(z_p) + s z_q)
    delta = (L_before - L) / L_before,  u <- b u + (1 - b) delta
    s <- min(end, max(start + (end - start) progress, s + a sigmoid(u) (1 - s)))

Options: `start`, `end` (s), `rate` (a), `momentum` (b).

**Changed**: on the student's own answers, with the context as teacher. L is the mean divergence of a step, where the
published code has a cross-entropy. Several views are one geometric mean.

The first loss moves nothing, and neither does a loss of 0 (no view in a step, or nothing left to learn): the next one
catches up with the time.

**Fails** as its end does: the softening is only a beginning, and `end: 1.0` is plain distillation.
"""

import math

import torch

from trl_opsd.losses import Target
from trl_opsd.losses.mixing import interpolated
from trl_opsd.losses.targets import geometric_mean
from trl_opsd.methods.base import Method, State, StepContext, StepSummary
from trl_opsd.options import NonNegative, Share


def target(step_context: StepContext) -> Target:
    share = max(step_context.options["start"], step_context.state["share"])

    def mixed(log_p: torch.Tensor, log_qs: list[torch.Tensor], shares: torch.Tensor) -> torch.Tensor:
        return interpolated(log_p, geometric_mean(log_p, log_qs, shares), share)

    return mixed


def update_state(summary: StepSummary) -> State:
    options, state, before = summary.options, summary.state, summary.state["loss"]
    if before <= 0 or summary.loss <= 0:
        return {**state, "loss": summary.loss or before}
    share = max(options["start"], state["share"])
    trend = options["momentum"] * state["trend"] + (1 - options["momentum"]) * (before - summary.loss) / before
    line = options["start"] + (options["end"] - options["start"]) * summary.progress
    step = options["rate"] / (1 + math.exp(-trend)) * (1 - share)
    return {"share": min(options["end"], max(line, share + step)), "trend": trend, "loss": summary.loss}


METHOD = Method(
    title="TAID",
    paper="2501.16937",
    authors="Shing and others",
    label="code",
    needs="a context in a column",
    defaults={"distillation_alpha": 0.0, "teacher_model_kind": "base"},
    options={"start": 0.4, "end": 1.0, "rate": 5e-4, "momentum": 0.99},
    option_types={"start": Share, "end": Share, "rate": NonNegative, "momentum": Share},
    state={"share": 0.0, "trend": 0.0, "loss": 0.0},
    target=target,
    update_state=update_state,
)
