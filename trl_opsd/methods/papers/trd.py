# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The teacher does not judge the student's answer but rewrites it: it reads the problem, a reference and the student's own
attempt, and writes the solution anew. The student is pulled to the teacher on this text y_r, under the bare prompt, so
that it learns from prefixes that are right and still near to its own.

    y_o ~ p(. | x),  y_r ~ q(. | x, s, y_o),  L = mean over t of KL(q(. | x, s, y_o, y_r<t) || p(. | x, y_r<t))

It has no option of its own: the loss is the package's forward KL, and the rest are `turns`.

**Changed**: y_o is sampled by the current student in each step; the paper samples one of the initial student for each
problem beforehand. The words of the request are ours.

With `teacher_model_kind: checkpoint` another model rewrites, which is the paper's second mode. As there, a text is
trained on whether it is right or not; `when` looks at y_o alone.

**Fails** where the rewriting quotes the reference or speaks of the attempt: the student then learns to speak of what it
has not seen. Watch `leak/quotes`, and read `turns/second_reward` if there is a reward.
"""

from trl_opsd.methods.base import Method


METHOD = Method(
    title="Trajectory-Refined Distillation",
    paper="2606.08432",
    label="code",
    needs="a solution in a column",
    defaults={
        "distillation_alpha": 0.0,
        "teacher_model_kind": "base",
        "policy_weight": 0.0,
        "privileged_source": "turn_context",
        "turns": {"slots": ["distil"], "source": {"with_attempt": "column"}, "weights": "teacher"},
    },
    roles=("distil",),
)
