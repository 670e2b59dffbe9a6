# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Several views of one solution make one target: what they agree on, and of what only some of them say as much as they
agree. The sign of the change of a token is always that of the consensus. This is the mode over whole distributions;
`avsd_tokens` is the one over sampled tokens.

    L = mean over t of KL(q* || p),  log q*_v = log p_v + G_v + C_v R_v J_v + const,  D^m_v = log q^m_v - log p_v
    G = mean_m D^m,  J = max(log mean_m exp(D^m) - G, 0),  C = |G| / mean_m |D^m|,  R = |G| / (|G| + J)

Views: the solution, its first half without the answer, and the answer alone (columns `solution` and `answer`; name a
`privileged_source` of your own for others). Their weights are the weights of the means.

**Changed**: the direction of the KL is not known to us for this mode: `distillation_alpha` is 0 here. It is over the
whole vocabulary, not over the union of top-k sets. Prompts are in our own words.

**Fails** where the views share a mistake of style: consensus is no proof. With one view it is plain distillation.
"""

import torch

from trl_opsd.losses import Target
from trl_opsd.losses.mixing import coherent_gap
from trl_opsd.methods.base import Method, StepContext


def target(step_context: StepContext) -> Target:
    def consensus(log_p: torch.Tensor, log_qs: list[torch.Tensor], shares: torch.Tensor) -> torch.Tensor:
        gaps = torch.stack([log_q - log_p for log_q in log_qs])
        return (log_p + coherent_gap(gaps, shares.unsqueeze(-1))).log_softmax(-1)

    return consensus


METHOD = Method(
    title="Adaptive-View Self-Distillation",
    paper="2605.20643",
    authors="Nguyen and others",
    label="paper",
    needs="a solution and its answer in columns",
    defaults={
        "distillation_alpha": 0.0,
        "teacher_model_kind": "base",
        "privileged_source": {
            "all_of": [
                {"column": {"column": "solution", "name": "solution"}},
                {"exposure": {"share": 0.5, "answer": "answer", "hide_answer": True, "name": "part"}},
                {"exposure": {"share": 0.0, "answer": "answer", "name": "answer"}},
            ]
        },
    },
    target=target,
)
