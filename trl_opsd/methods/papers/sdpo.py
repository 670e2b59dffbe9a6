# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
A successful sibling of the group, or what a verifier said, is what the teacher reads; every other rollout is pulled to
it over the student's own most likely tokens, with the rest of the vocabulary as one more class.

The teacher follows the student as a moving average. A bounded importance weight makes up for weights that have moved
since the sampling.

    L = mean over t of w_t GJSD_0.5(q_t, p_t) on S_100(p_t) and its tail,  w_t = min(p_t(y_t) / p_old(y_t), 2)
    phi <- 0.95 phi + 0.05 theta after each step

These are the values for tasks without feedback. With rich feedback: `distillation_alpha: 1.0`, `distillation_topk: 20`,
`teacher_update_rate: 0.01`, `privileged_source: {first_of: [sibling, feedback]}`. Its other teacher is
`sdpo_trust_region`. The rewards only say who succeeded: there is no policy term.

**Changed**: nothing in the loss. Prompts are in our own words. A sibling and feedback do not stand in one prompt:
`first_of` takes one of them. The tail is summed itself, not taken as 1 minus the rest.

**Fails** where no rollout of a group succeeds and nothing is said (no view), with small models that can't learn in
context (1.5B: worse than GRPO), and on long chains of thought in mathematics (RLCSD's comparison: 73.7 of 75.5).
"""

from trl_opsd.methods.base import Method


METHOD = Method(
    title="Reinforcement Learning via Self-Distillation",
    paper="2601.20802",
    authors="Jonas Hübotter and others",
    label="code",
    needs="a reward and several rollouts of a prompt; better with feedback",
    defaults={
        "policy_weight": 0.0,
        "distillation_alpha": 0.5,
        "distillation_mode": "topk_logits",
        "distillation_topk": 100,
        "distillation_add_tail": True,
        "distillation_is_clip": 2.0,
        "teacher_model_kind": "ema",
        "privileged_source": "sibling",
    },
)
