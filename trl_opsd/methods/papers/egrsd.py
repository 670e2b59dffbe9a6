# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
RLSD where the teacher is sure: the verifier gives a token's direction, the likelihood ratio of teacher and student its
size, and the teacher's entropy how much that counts. No token's weight falls to nothing.

    A_t = A clip(exp(sign(A) Delta_t), 1 - epsilon, 1 + epsilon) [f + (1 - f) exp(-H(q_t))]

Options: `clip` is epsilon, `floor` is f.

**Changed**: the three factors, and that the third has a lower bound above 0, are published; its form was not found, and
exp(-H), as well as f = 0.5, are chosen here, and so is what of `rlsd` is left out: its share of plain GRPO, which is
annealed, and its snapshot.

The paper's second variant, which looks ahead, is not implemented.

**Fails** where GRPO fails: without a reward that tells completions of a group apart there is no direction.
"""

import torch

from trl_opsd.methods.base import Method, TokenSignals
from trl_opsd.options import NonNegative, Share


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own at tokens without a teacher."""
    options, verifier = signals.options, signals.advantages
    ratio = (verifier.sign() * signals.gap).exp().clamp(1 - options["clip"], 1 + options["clip"])
    entropy = (signals.shares * signals.teacher_entropy).sum(0)
    sure = options["floor"] + (1 - options["floor"]) * (-entropy).exp()
    return verifier * torch.where(signals.mask > 0, ratio * sure, 1.0)


METHOD = Method(
    title="Respecting Self-Uncertainty in On-Policy Self-Distillation for Efficient LLM Reasoning",
    paper="2605.13255",
    authors="Junlong Ke and Zichen Wen and Weijia Li and Conghui He and Linfeng Zhang",
    label="proposed reading",
    needs="a reward, and a reference solution in a column",
    needs_reward=True,
    reads_teacher_entropy=True,
    defaults={"distillation_mode": "sampled_token", "distillation_alpha": 1.0, "teacher_model_kind": "live"},
    options={"clip": 0.2, "floor": 0.5},
    option_types={"clip": NonNegative, "floor": Share},
    advantages=advantages,
)
