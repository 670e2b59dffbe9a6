# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Purified distillation subtracts the words and the style of the reference itself: the target is the base on the bare
problem, tilted by how much more likely the problem makes a token for one who has read the reference.

    L = mean over t of GJSD_0.5(q*, p),  q* = softmax(log base(.|x) + c tanh(D / c) / b)
    D = log base(.|x, r) - log base(.|r), minus its mean over the vocabulary

Three forwards of the frozen base: the source's view with problem and reference, `alone` (the reference), `bare` (the
problem); another source goes into `with_baselines`. Options: `bound` (c), `temperature` (b).

**Changed**: the weight in the GJSD is not published: `distillation_alpha` is 0.5 here. The reference alone is a user
message with the view's template.

**Fails** where the reference alone gives the whole answer: what it adds to the problem is then little.
"""

import torch

from trl_opsd.losses import Target
from trl_opsd.methods.base import Method, StepContext
from trl_opsd.options import Positive


def tilted(
    log_base: torch.Tensor, log_full: torch.Tensor, log_alone: torch.Tensor, bound: float, temperature: float
) -> torch.Tensor:
    """
    Tilted distribution softmax(log base + c tanh(D / c) / b), with D = log full - log alone centred over the
    vocabulary, the pointwise mutual information of token and problem given the reference. Of all P it maximises
    E_P[c tanh(D / c)] - b KL(P||base).

    Args:
        log_base (`torch.Tensor` of shape `(N, V)`): Log-probabilities given the problem.
        log_full, log_alone (`torch.Tensor` of shape `(N, V)`): Given problem and reference, and the reference alone.
        bound (`float`): c.
        temperature (`float`): b.
    """
    gain = log_full - log_alone
    gain = gain - gain.mean(-1, keepdim=True)
    return (log_base + bound * torch.tanh(gain / bound) / temperature).log_softmax(-1)


def target(step_context: StepContext) -> Target:
    bound, temperature = step_context.options["bound"], step_context.options["temperature"]

    def tilt(log_p: torch.Tensor, log_qs: list[torch.Tensor], shares: torch.Tensor) -> torch.Tensor:
        bare, full, alone = (log_qs[step_context.view(name)] for name in ("bare", "privileged", "alone"))
        return tilted(bare, full, alone, bound, temperature)

    return tilt


METHOD = Method(
    title="Purified OPSD",
    paper="2607.02234",
    label="paper",
    needs="a reference solution, as text in a column",
    required=("privileged", "alone", "bare"),
    defaults={
        "distillation_alpha": 0.5,
        "teacher_model_kind": "base",
        "privileged_source": {"with_baselines": {"source": "column"}},
    },
    options={"bound": 10.0, "temperature": 1.0},
    option_types={"bound": Positive, "temperature": Positive},
    target=target,
)
