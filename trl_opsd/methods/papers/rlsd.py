# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The verifier says in which direction a token's probability moves, the teacher that reads the solution only how far:
tokens that the teacher finds more likely than the student get more of a good completion's credit and less of a bad
one's blame. The teacher's share is annealed to nothing.

    A_t = A [(1 - lambda) + lambda clip(exp(sign(A) D_t), 1 - epsilon, 1 + epsilon)],  D_t = log q(y_t) - log p(y_t)

Options: `share` is lambda at the start, `steps` the steps over which it falls to 0, `clip` is epsilon.

**Changed**: nothing known; the snapshot's age is not published, we renew it every 10 steps.

**Fails** where GRPO fails: without a reward that tells completions of a group apart there is no direction.
"""

import torch

from trl_opsd.methods.base import Method, TokenSignals
from trl_opsd.options import Count, NonNegative, Share


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own at tokens without a teacher."""
    options, verifier = signals.options, signals.advantages
    share = options["share"] * max(0.0, 1.0 - signals.step_context.step / options["steps"])
    factor = (verifier.sign() * signals.gap).exp().clamp(1 - options["clip"], 1 + options["clip"])
    return verifier * (1 + share * (factor - 1) * signals.mask)


METHOD = Method(
    title="Self-Distilled RLVR",
    paper="2604.03128",
    label="paper",
    needs="a reward, and a reference solution in a column",
    needs_reward=True,
    defaults={
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "teacher_model_kind": "snapshot",
        "teacher_sync_steps": 10,
        "epsilon_high": 0.28,
    },
    options={"share": 0.5, "steps": 50, "clip": 0.2},
    option_types={"share": Share, "steps": Count, "clip": NonNegative},
    advantages=advantages,
)
