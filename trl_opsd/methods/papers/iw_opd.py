# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The further a completion has drifted from what the teacher would write, the less its teacher's opinion on the next token
is worth. So tokens count by how much of the completion's disagreement still lies ahead: early ones more.

    A_t = w_t Delta_t,  w_t = 1 + gamma (1 - sum over s < t of |Delta_s| / sum over s of |Delta_s|)

Option: `gamma`.

**Changed**: nothing in the weights, which are those of TRL's experimental trainer; Delta is taken against the current
student, there against the one that sampled, which is the same for one optimizer step a generation batch. The paper's
teacher is another model, for which `teacher_model_kind: checkpoint` stands; here it reads the solution.

**Fails** where the decisive tokens come late, such as an answer after long reasoning that both sides agree on.
"""

import torch

from trl_opsd.methods.base import Method, TokenSignals
from trl_opsd.options import NonNegative


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own, if there is one, at tokens without a teacher."""
    size = signals.gap.abs()
    total = size.sum(1, keepdim=True)
    before = torch.where(total > 0, (size.cumsum(1) - size) / total, 0.0)
    weight = 1 + signals.options["gamma"] * (1 - before)
    return signals.advantages + signals.scale * weight * signals.gap


METHOD = Method(
    title="On the Position Bias of On-Policy Distillation",
    paper="2606.22600",
    authors="Yan Xie and Sijie Zhu and Tiansheng Wen and Bo Chen and Yifei Wang",
    label="code",
    needs="a reference solution in a column",
    defaults={"distillation_mode": "sampled_token", "distillation_alpha": 1.0, "teacher_model_kind": "base"},
    options={"gamma": 0.5},
    option_types={"gamma": NonNegative},
    advantages=advantages,
)
