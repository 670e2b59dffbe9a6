# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Without labels or a verifier, agreement says when to trust: a prompt is learnt from only if enough of its rollouts give
one answer. There the teacher, who reads the document that the question is about, gives each of the student's tokens
its log-ratio as an advantage, within bounds.

    A_t = clip(log q(y_t) - log p(y_t), -b, b)  if half of the group (4 of 8) or more agree, else 0

Option: `bound` is b. The share and how an answer is read are options of the condition `consensus`.

**Changed**: the paper's answers are those of the tutor, eight rollouts that have read the document, and it also trains
on the tutor's majority rollouts by cross-entropy. Here the student's own rollouts vote, and that off-policy part is
left out: a proposed reading. Two answers with equal votes are no consensus, nor is one vote. b is chosen here.

**Fails** when the majority is wrong in the same way, and it never learns from prompts that are too hard to agree on.
"""

import torch

from trl_opsd.methods.base import Method, TokenSignals
from trl_opsd.options import Positive


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own, if there is one, at tokens without a teacher."""
    bound = signals.options["bound"]
    return signals.advantages + signals.scale * signals.gap.clamp(-bound, bound)


METHOD = Method(
    title="GATES: Self-Distillation under Privileged Context with Consensus Gating",
    paper="2602.20574",
    authors="Alex Stein and Furong Huang and Tom Goldstein",
    label="proposed reading",
    needs="a document or a solution in a column, and groups",
    defaults={
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "teacher_model_kind": "live",
        "privileged_source": {"when": {"condition": "consensus", "source": "column"}},
    },
    options={"bound": 1.0},
    option_types={"bound": Positive},
    advantages=advantages,
)
