# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Away from the teacher: a solution in the context raises what it implies already and lowers the words of deliberation
that find one. So the token's sign is reversed, by ascent on the Jensen-Shannon divergence, whose advantage is bounded
above; a gate ends it when the teacher's entropy collapses.

    A_t = A - lambda g phi(Delta_t),  phi(u) = (softplus(u) - log 2) / 2
    g: 0 for W steps; then 1, until the entropy is below drop * its mean in those steps; 1 again from that mean on

Options: `warmup` is W, `drop`. lambda = 0.5 is `distillation_weight`.

**Changed**: entropies are means over tokens, the paper's medians. The teacher reads a solution alone, not the line on
whether the rollout was right that follows it in the paper. Taking the generic part off the gap, without a change of
sign, is another method of the same authors: `credit`.

**Fails** without the gate, which the ascent needs as it has no end of its own; with reverse KL it collapsed.
"""

import math

import torch

from trl_opsd.methods.base import Method, State, StepSummary, TokenSignals
from trl_opsd.options import Index, Share


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own at tokens without a teacher and while the gate is shut."""
    shape = (torch.nn.functional.softplus(signals.gap) - math.log(2)) / 2
    return signals.advantages - signals.step_context.state["gate"] * signals.scale * shape * signals.mask


def update_state(summary: StepSummary) -> State:
    state, entropy, warmup = dict(summary.state), summary.logged.get("teacher_entropy"), summary.options["warmup"]
    if entropy is None:
        return state
    if state["seen"] < warmup:
        start = state["start"] + (entropy - state["start"]) / (state["seen"] + 1)
        return {"seen": state["seen"] + 1, "start": start, "gate": float(state["seen"] + 1 >= warmup)}
    opens, shuts = entropy >= state["start"], entropy < summary.options["drop"] * state["start"]
    return state | {"gate": 1.0 if opens else 0.0 if shuts else state["gate"]}


METHOD = Method(
    title="Anti-Self-Distillation for Reasoning RL via Pointwise Mutual Information",
    paper="2605.11609",
    authors="Guobin Shen and Xiang Cheng and Chenxiao Zhao and Lei Huang and Jindong Li and Dongcheng Zhao and Xing Yu",
    label="paper",
    needs="a reward, and a reference solution in a column for groups without success",
    needs_reward=True,
    reads_teacher_entropy=True,
    defaults={"distillation_mode": "sampled_token", "distillation_alpha": 1.0, "distillation_weight": 0.5}
    | {"teacher_model_kind": "live", "privileged_source": {"first_of": [{"sibling": {"choice": "random"}}, "column"]}},
    options={"warmup": 5, "drop": 0.93},
    option_types={"warmup": Index, "drop": Share},
    advantages=advantages,
    state={"seen": 0.0, "start": 0.0, "gate": 0.0},
    update_state=update_state,
)
