# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The teacher reads a part of the solution, and how large a part is learned. A controller draws the share alpha of its
segments, holds it for some steps, and is rewarded by the falls of the loss within them. The answer is always shown.

    L = mean over t of KL(q_t || p_t),  q_t = base(. | x, first floor(alpha m) of m segments, answer, y_<t)
    alpha ~ Beta(a, b),  (a, b) = 1 + softplus(f(s)),  R = sum over i <= 3 of 0.9^(i-1) max(0, L_(t+i-1) - L_(t+i))

**Changed**: a third party's notes were read, and no code: a proposed reading. The number of held steps, the look-ahead,
the discount and the entropy's ceiling are ours. The reward lacks the teacher's likelihood of the reference. The clip of
OPSD is left out. The controller is the source `adaptive_exposure`, which any method can name.

**Fails** in short runs: with five steps a share, fifty steps are ten decisions, too few to learn from. The loss depends
on the share, and low shares make small losses. Compare with `exposure` at fixed shares and at `share: random`, and with
`learning_rate: 0`.
"""

from trl_opsd.methods.base import Method


TEMPLATE = "Here is a solution, maybe a part of it:\n\n{privileged_context}\n\nNow answer in your own words."

METHOD = Method(
    title="ATESD: Adaptive Teacher Exposure for Self-Distillation",
    paper="2605.11458",
    authors="Han and others",
    label="proposed reading",
    needs="solutions in segments, in a column",
    defaults={
        "distillation_alpha": 0.0,
        "teacher_model_kind": "base",
        "privileged_source": {"adaptive_exposure": {"template": TEMPLATE}},
    },
)
