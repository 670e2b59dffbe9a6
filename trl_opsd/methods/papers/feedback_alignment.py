# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The context is a critique of this very rollout, aligned with its steps: a frozen critic copies the steps that are right
and rewrites only the first wrong one. Teacher and student then agree up to there and part where the rollout fails,
while a whole other solution moves every token. The teacher has the weights of the start.

    L = mean over t of KL(q_t || p_t),  q_t = base(. | x, c(y), y_<t),  c(y) = kept steps of y, and one step done right

The critic's options are those of `critic` in docs/privileged.md: `{critic: {reference: solution, schema: steps, author:
...}}`; by default it is the model itself with the weights of the start, which reads no reference.

**Changed**: the paper's schema of four cases is not published to us: a beginning kept word for word and one corrected
step is ours, with a check that what is kept stands in the rollout. The paper's critic is QwQ-32B. Nothing is clipped.

**Fails** where the critic is weak: what it keeps is not in the rollout (no view, `critic_unaligned`), or its correction
is wrong. A critique that quotes the wrong step makes the teacher like it.
"""

from trl_opsd.methods.base import Method


METHOD = Method(
    title="The Role of Feedback Alignment in Self-Distillation",
    paper="2606.11173",
    authors="Semih Kara and Oğuzhan Ersoy",
    label="proposed reading",
    needs="a critic that is good enough; better with solutions in a column",
    defaults={
        "distillation_alpha": 0.0,
        "teacher_model_kind": "base",
        "privileged_source": {"critic": {"schema": "steps", "author": "teacher"}},
    },
)
