# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The reverse KL on the student's most likely tokens, without the term that lets mass leak out of them: the log ratio is
held constant. Left in, that term promotes a token only if the teacher finds it e times as likely as the student does,
pushes the others down, and runs collapse.

    L = mean over t of sum over v in S_20(p_t) of p_v sg(log(p_v / q_v))

The same update with both sides renormalised over the set: `distillation_stop_gradient: false`.

**Changed**: which factor is held constant is our reading of the published gradient. Teacher: the weights at the start,
as nothing else is said; for context that all prompts share (a system prompt) it works best.

**Fails** with solutions of single problems as context: the best student without context is the geometric mean of the
teachers, which is empty where their solutions do not agree (no gain on MATH500 and AIME in the paper).
"""

from trl_opsd.methods.base import Method


METHOD = Method(
    title="The Many Faces of On-Policy Distillation",
    paper="2605.11182",
    authors="Zhu and others",
    label="paper",
    needs="a context in a column, best one that all prompts share",
    defaults={
        "distillation_alpha": 1.0,
        "distillation_mode": "topk_logits",
        "distillation_topk": 20,
        "distillation_stop_gradient": True,
        "teacher_model_kind": "base",
    },
)
