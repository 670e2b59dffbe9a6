# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
A policy that reinforcement learning has made too sure of itself is warmed up again: the teacher is the model itself as
it was at the start, at a higher temperature. What sampling at that temperature would do goes into the weights, and the
next reinforcement learning begins from them.

    L = mean over t of KL(q_t || p_t),  q_t = softmax(z_start / T),  p_t = softmax(z),  T = 1.5

No context, no reward and no other model is needed. The loss is 0 once the student at temperature 1 is its start at
temperature T. T is the option `distillation_teacher_temperature`.

**Changed**: only an abstract is known to us. That the model's own logits at a high temperature are the teacher on the
student's rollouts is published; the forward KL, T and the frozen start are our reading. A `live` teacher would be
followed to ever flatter distributions.

**Fails** on a policy that is not too sure: it is made worse. Watch `student_entropy`, and stop early: what is warmed up
is meant to be trained on. Below 1, T sharpens instead.
"""

from trl_opsd.methods.base import Method


METHOD = Method(
    title="Internalize the Temperature: On-Policy Self-Distillation as Policy Reheater for Reinforcement Learning",
    paper="2606.00755",
    authors="Xuewei Yang and Jiachen Yu and Jie Wu and Shaoning Sun and Junjie Wang and Yujiu Yang",
    label="proposed reading",
    needs="prompts alone",
    defaults={
        "distillation_alpha": 0.0,
        "distillation_teacher_temperature": 1.5,
        "teacher_model_kind": "base",
        "privileged_source": "bare",
    },
)
