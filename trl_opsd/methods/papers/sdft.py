# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The teacher reads a demonstration of the task; the student learns from it on its own answers and so forgets less than by
imitation. The teacher is a slow moving average of the student. The first tokens of an answer are left out, as they hold
openings that speak of the demonstration.

    L = mean over t >= n of sum over v of q_v log(q_v / p_v),  phi <- (1 - a) phi + a theta

n is `num_loss_tokens_to_skip`, 3 as in public copies of the authors' script (TRL's trainer: 0); a is
`teacher_update_rate`, 0.02 (published: one of 0.01, 0.02, 0.05).

**Changed**: the paper writes the reverse KL; its author says that all results are of the forward KL, which stands here.
The mean is over all tokens, not over those of each answer. Prompts are in our own words.

**Fails** with models too small to use a demonstration (3B: worse than imitation), and costs some following of
instructions (an independent run: 20 points on IFEval).
"""

from trl_opsd.methods.base import Method


METHOD = Method(
    title="Self-Distillation Enables Continual Learning",
    paper="2601.19897",
    authors="Idan Shenfeld and Mehul Damani and Jonas Hübotter and Pulkit Agrawal",
    label="paper",
    needs="a demonstration in a column",
    defaults={
        "distillation_alpha": 0.0,
        "num_loss_tokens_to_skip": 3,
        "teacher_model_kind": "ema",
        "teacher_update_rate": 0.02,
    },
)
