# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Two contexts for one rollout: the reference solution, and a mistaken answer of the same group. What both make likelier
is style or the format of a context; what only the reference makes likelier is credit for being right. The contrast is
added to the verifier's advantage, which stays.

    A_t = A + clip(log q_ref(y_t) - log q_mis(y_t), -b, b)

Option: `bound` is b. Where a group has no mistake, or a row no reference, the advantage is the verifier's alone.

**Changed**: only the abstract was read. That the two contexts are contrasted and the reward is kept is the paper's; the
sum, its bound, and the live teacher are ours: a proposed reading.

**Fails** where the mistaken answers are right by another way than the verifier's, and where the model reads a context's
answer without telling right from wrong.
"""

import torch

from trl_opsd.methods.base import Method, TokenSignals
from trl_opsd.options import Positive


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own where one of the two contexts is missing."""
    names = ("reference", "mistake")
    if not set(names) <= set(signals.step_context.views):
        return signals.advantages.expand_as(signals.mask)
    reference, mistake = (signals.step_context.view(name) for name in names)
    contrast = signals.teacher_logps[reference] - signals.teacher_logps[mistake]
    bound, both = signals.options["bound"], signals.taught[reference] * signals.taught[mistake]
    return signals.advantages + signals.scale * both * contrast.clamp(-bound, bound)


METHOD = Method(
    title="SIPO",
    paper="2609.36742",
    label="proposed reading",
    needs="a reward, several rollouts of a prompt, and a reference solution in a column",
    needs_reward=True,
    required=("reference", "mistake"),
    defaults={
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "teacher_model_kind": "live",
        "privileged_source": {
            "all_of": [{"column": {"name": "reference"}}, {"wrong_demonstration": {"name": "mistake"}}]
        },
    },
    options={"bound": 1.0},
    option_types={"bound": Positive},
    advantages=advantages,
)
