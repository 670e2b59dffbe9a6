# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
GRPO on the student's own trajectories, and beside it the reverse KL to the same weights that read privileged
information, the paper's in their system prompt (`privileged_place: system`). The KL is that of the whole next-token
distributions at each visited prefix (the Rao-Blackwellised estimate), and it is back-propagated itself: it does not
enter the reward.

    L = L_GRPO + beta mean over t of KL(p_t || sg q_t),  beta = 0.5, as `distillation_weight`

There is no KL to a frozen reference: the paper saw that one collapse.

**Changed**: the paper's sum over the tokens is a mean, as GRPO's here. Prompts whose rollouts all have one reward are
not dropped; their advantage is 0, and they learn from the teacher alone. The paper's penalties on length and on leaked
keywords are rewards of one's own here. Its sibling pi-Distill samples from the teacher and is not implemented.

**Fails** when the two prompts begin far apart: a large KL at the start predicted failure.
"""

from trl_opsd.methods.base import Method


METHOD = Method(
    title="Privileged Information Distillation for Language Models",
    paper="2602.04942",
    authors="Emiliano Penaloza and Dheeraj Vattikonda and Nicolas Gontier and Alexandre Lacoste and Laurent Charlin "
    "and Massimo Caccia",
    label="paper",
    needs="a reward, and privileged information in a column",
    needs_reward=True,
    defaults={"distillation_alpha": 1.0, "distillation_weight": 0.5, "teacher_model_kind": "live"},
)
