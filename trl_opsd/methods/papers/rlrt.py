# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
RLSD's signal read in reverse, on rollouts that succeeded alone. Tokens of a right answer that the teacher, who has read
a right answer of another rollout, would not have predicted are the student's own way to it: they get more of the
credit. Rollouts that failed are left to GRPO; without that gate training collapsed.

    A_t = A [(1 - lambda) + lambda clip((p(y_t) / q(y_t))^sign(A), 1 - epsilon, 1 + epsilon)]  if y is right, else A

Options: `share` is lambda, `clip` is epsilon.

**Changed**: the weight (p / q)^sign(A) and the gate are published; how it enters the advantage was not found, and is
RLSD's form here, without its annealing. lambda, epsilon and the teacher's weights are chosen here.

**Fails** where GRPO fails, and it widens no answer: a rollout without a right sibling has plain GRPO.
"""

import torch

from trl_opsd.methods.base import Method, TokenSignals
from trl_opsd.options import NonNegative, Share


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own at tokens without a teacher and in rollouts that failed."""
    options, verifier = signals.options, signals.advantages
    factor = (-verifier.sign() * signals.gap).exp().clamp(1 - options["clip"], 1 + options["clip"])
    return verifier * (1 + options["share"] * (factor - 1) * signals.mask * signals.success)


METHOD = Method(
    title="Rebellious Student: Reversing Teacher Signals for Reasoning Exploration with Self-Distilled RLVR",
    paper="2605.10781",
    authors="Jeonghye Kim and Jiwon Jeon and Dongsheng Li and Yuqing Yang",
    label="proposed reading",
    needs="a reward, and groups with several right rollouts",
    needs_reward=True,
    defaults={
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "teacher_model_kind": "live",
        "privileged_source": {"when": {"condition": "succeeded", "source": "sibling"}},
    },
    options={"share": 0.5, "clip": 0.2},
    option_types={"share": Share, "clip": NonNegative},
    advantages=advantages,
)
