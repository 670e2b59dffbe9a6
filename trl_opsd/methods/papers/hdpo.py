# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Distillation only where a whole group fails: GRPO learns nothing from such a prompt, as all its advantages are 0. There
the student is pulled to the same weights that read the solution; everywhere else the loss is GRPO's.

    L = L_GRPO + lambda mean over the tokens of groups without success of JSD(q_t, p_t),  lambda = 0.01

lambda is `distillation_weight`; 0.1 gave up greedy accuracy for coverage.

**Changed**: the paper samples new rollouts from the teacher for such prompts, keeps the right ones and distils on them.
Here the tokens are those of the student's own failed rollouts, as everywhere in this library, so that no rollout of the
teacher is needed and none is filtered: a proposed reading.

The teacher's 64 likeliest tokens and a tail are compared; the paper renormalises the teacher's and lets the student's
rest count log 2.

**Fails** when even the teacher can't turn a failed rollout towards the solution.
"""

from trl_opsd.methods.base import Method


METHOD = Method(
    title="HDPO: Hybrid Distillation Policy Optimization via Privileged Self-Distillation",
    paper="2603.23871",
    authors="Ken Ding",
    label="proposed reading",
    needs="a reward, and a reference solution in a column",
    needs_reward=True,
    defaults={
        "distillation_mode": "topk_logits",
        "distillation_topk": 64,
        "distillation_topk_source": "teacher",
        "distillation_add_tail": True,
        "distillation_alpha": 0.5,
        "distillation_weight": 0.01,
        "teacher_model_kind": "live",
        "privileged_source": {"when": {"condition": "group_failed", "source": "column"}},
    },
)
