# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Guided rollouts for behaviour so rare that the student never shows it: some are sampled with the context in view, and
trained under the bare prompt. A mask of evidence keeps the context's side effects out: only tokens that the context
makes likelier are taught, with the student's own weights as the teacher.

    L = mean over t of m_t KL(q_t || p_t),  m_t = 1[log q_t(y_t) - log p_t(y_t) > e]

Option: `evidence` is e. Guided rollouts are `trl_opsd.privileged.guided.guided_rollouts`, which `rollout_func` names in
a recipe of scripts/opsd.py, and which a trainer takes as its `rollout_func`: half of the rollouts of a training batch.

**Changed**: only the abstract was read. Guidance and mask are the paper's; the share, the bound, the divergence and the
live teacher, under which the evidence is the context's alone, are ours: a proposed reading.

Guided rollouts are not corrected for having been sampled elsewhere (`distillation_is_clip` can do so where the backend
tells what it sampled with); under a policy term they would be off-policy.

**Fails** without guided rollouts where the behaviour does not occur: the mask then has nothing to let through.
"""

import torch

from trl_opsd.losses import TokenStats, TokenWeight
from trl_opsd.methods.base import Method, StepContext


def token_weight(step_context: StepContext) -> TokenWeight:
    def factors(stats: TokenStats) -> torch.Tensor:
        evidence = stats.teacher_logps - stats.student_logps  # (K, t)
        return (evidence > step_context.options["evidence"]).to(evidence.dtype)

    return factors


METHOD = Method(
    title="EDGE-OPD: Internalizing Privileged Context with Evidence Guided On-Policy Distillation",
    paper="2605.23493",
    authors="Aristotelis Lazaridis and Dylan Bates and Aman Sharma and Brian King and Vincent Lu and Jack FitzGerald",
    label="proposed reading",
    needs="a context in a column; guided rollouts where the behaviour is rare",
    defaults={"distillation_alpha": 0.0, "teacher_model_kind": "live"},
    options={"evidence": 0.0},
    option_types={"evidence": float},
    token_weight=token_weight,
)
