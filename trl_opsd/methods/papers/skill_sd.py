# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
An author summarises finished trajectories into skills, and the teacher, the student's current weights, reads those that
fit the task. The estimate k3 of the KL, multiplied by the importance ratio, stands beside GRPO: without the ratio its
gradient would be that of the forward KL, and wrong for samples of the student.

    L = L_GRPO + lambda mean over t of rho_t (exp(-l_t) - 1 + l_t),  l_t = log p(y_t) - log q(y_t),  rho_t = p / p_old

At each token the gradient of rho k3 through both rho and l is rho l grad log p, exactly: the policy gradient of the
advantage -l_t, which is what the sampled token's gap gives TRL's loss. lambda = 0.001 is `distillation_weight`.

**Changed**: TRL's clip acts on the sum of both advantages, where the paper's loss leaves the second term unclipped;
with one optimizer step a generation batch it never acts. By default the model itself writes the skills (the paper:
Seed1.8), in three lines instead of JSON: see the source `skills`.

**Fails** while nothing succeeds, so that there is little to summarise; lambda = 0.01 held the paper's students back.
"""

from trl_opsd.methods.base import Method


METHOD = Method(
    title="Skill-SD: Skill-Conditioned Self-Distillation for Multi-turn LLM Agents",
    paper="2604.10674",
    authors="Wang and others",
    label="paper",
    needs="a reward, and tasks that resemble each other",
    needs_reward=True,
    defaults={
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "distillation_weight": 0.001,
        "teacher_model_kind": "live",
        "privileged_source": "skills",
    },
)
