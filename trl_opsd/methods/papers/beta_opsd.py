# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The teacher's logits are interpolated with those of a frozen reference that reads the bare prompt, so that a context
moves the student no further from the base than wanted.

    L = mean over t of KL(q* || p),  q* = softmax((1 - share) z_base(., x, c) + share z_base(., x))

Option: `share` of the reference, from 0 (plain OPSD) to 1 (back to the base). The views: `privileged`, read by the
teacher, or by the student as it is with `reader: live` in its source, and `bare`, read by the teacher; another source
goes into `with_baselines` with `alone: false`.

**Changed**: only an abstract is known to us; the share and the direction of the KL are a proposed reading. SR-OPSD
(2608.09745) adds a projection by a Renyi divergence, which we could not establish and do not offer.

**Fails** where the base is far from right: it is then half of the target.
"""

import torch

from trl_opsd.losses import Target
from trl_opsd.losses.mixing import interpolated
from trl_opsd.methods.base import Method, StepContext
from trl_opsd.options import Share


def target(step_context: StepContext) -> Target:
    def mixed(log_p: torch.Tensor, log_qs: list[torch.Tensor], shares: torch.Tensor) -> torch.Tensor:
        teacher, reference = (log_qs[step_context.view(name)] for name in ("privileged", "bare"))
        return interpolated(teacher, reference, step_context.options["share"])

    return mixed


METHOD = Method(
    title="beta-OPSD",
    paper="2607.28582",
    label="proposed reading",
    needs="a context in a column",
    required=("privileged", "bare"),
    defaults={
        "distillation_alpha": 0.0,
        "teacher_model_kind": "base",
        "privileged_source": {"with_baselines": {"source": "column", "alone": False}},
    },
    options={"share": 0.5},
    option_types={"share": Share},
    target=target,
)
