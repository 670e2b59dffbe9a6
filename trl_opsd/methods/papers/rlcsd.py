# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The credit of a token is how much more likely a right hint makes it than K wrong ones in the same template: what any
hint does to a teacher's style cancels, and the student's own probability plays no part.

Tokens that this moves get it on top of the verifier's advantage, whose sign stays, and are averaged apart from the
others.

    e_t = log q_right(y_t) - log mean_k q_wrong,k(y_t),  r_t = size tanh(e_t / tau)
    L = mean over t with |r_t| <= delta of PPO(A) + eta mean over the others of PPO(keep sign of A: A + r_t)

Options: `size` (the paper's beta lambda, 1 * 0.5), `tau`, `delta`, `eta`.

**Changed**: TRL divides once, by all tokens; so advantages of the first set are multiplied by tokens / its tokens, and
those of the second by eta tokens / its tokens, counted in the micro-batch, which gives the two means under TRL's token
means (`dapo`).

The code's clip of r_t at 2 can't bind at these values and is left out. A rollout without a right or without a wrong
sibling keeps A.

**Fails** without groups that hold both right and wrong rollouts.
"""

import torch

from trl_opsd.losses import contrast, mean_over
from trl_opsd.methods.base import Method, TokenSignals
from trl_opsd.options import NonNegative, Positive


TEMPLATE = "An answer to this question:\n\n{privileged_context}\n\nNow answer it in your own way."


def keep_sign(values: torch.Tensor, verifier: torch.Tensor) -> torch.Tensor:
    """Values clipped to the verifier's sign, `(B, C)`: 0 where they have the other one or it has none."""
    sign = verifier.sign()
    return sign * (sign * values).clamp(min=0.0)


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own at tokens without contrast, but for the factor of their set."""
    options, verifier, step_context = signals.options, signals.advantages, signals.step_context
    evidence = contrast(
        signals.teacher_logps, signals.taught, step_context.family("right"), step_context.family("wrong")
    )
    residual = options["size"] * (evidence / options["tau"]).tanh()
    moved = (residual.abs() > options["delta"]) * signals.loss_mask
    other = mean_over(signals.loss_mask - moved, signals.loss_mask) * verifier
    return other + options["eta"] * mean_over(moved, signals.loss_mask) * keep_sign(verifier + residual, verifier)


HINTS = [
    {"sibling": {"name": "right", "choice": "random", "template": TEMPLATE}},
    {"wrong_demonstration": {"name": "wrong", "count": 4, "template": TEMPLATE}},
]
METHOD = Method(
    title="RLCSD: Reinforcement Learning with Contrastive On-Policy Self-Distillation",
    paper="2606.11709",
    label="code",
    needs="a reward, and groups with right and wrong rollouts",
    needs_reward=True,
    required=("right", "wrong"),
    defaults={"distillation_mode": "sampled_token", "distillation_alpha": 1.0, "teacher_model_kind": "snapshot"}
    | {"teacher_sync_steps": 10, "privileged_source": {"all_of": HINTS}},
    options={"size": 0.5, "tau": 0.02, "delta": 0.02, "eta": 1.0},
    option_types={"size": NonNegative, "tau": Positive, "delta": NonNegative, "eta": NonNegative},
    advantages=advantages,
    micro_batch_statistics=True,
)
