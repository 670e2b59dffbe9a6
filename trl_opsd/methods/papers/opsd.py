# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
OPSD as published, with an entry clip that turned the objective round on the small models tried here
(`distillation_entry_clip: null` leaves it out, as the package's own defaults do).

The teacher reads a reference solution, and the student is pulled to its whole next-token distribution on the student's
own completions. The teacher's weights stand still at their start. The clip on each vocabulary entry keeps tokens of
style from drowning the tokens of mathematics.

    L = mean over t of sum over v of min(q_v log(q_v / p_v), c),  c = 0.05

Early variant (before March 2026): `distillation_alpha: 0.5` and no clip. Sampled token: `distillation_mode:
sampled_token`, `distillation_alpha: 1.0` and no clip.

**Changed**: nothing in the loss. Prompts are in our own words (recipes).

**Fails** when the model can't use the solution in its context, with thinking models at long budgets (2607.05184), and
where the clip inverts the objective: see docs/defaults.md.

With Q_A the teacher's mass on the entries that are not
clipped, the gradient on logit i is Q_A p_i - q_i, and Q_A p_i where it is (2609.38995): away from each clipped entry.
"""

from trl_opsd.methods.base import Method


METHOD = Method(
    title="Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
    paper="2601.18734",
    authors="Siyan Zhao and Zhihui Xie and Mengchen Liu and Jing Huang and Guan Pang and Feiyu Chen and Aditya Grover",
    label="code",
    needs="a reference solution in a column",
    defaults={
        "distillation_alpha": 0.0,
        "distillation_entry_clip": 0.05,
        "teacher_model_kind": "base",
    },
)
