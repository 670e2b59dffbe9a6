# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
SDPO whose teacher stays near the start: not an average of weights, but of the logits that the frozen and the current
model give to the same tokens under the same context. Two views hold the one context; the second is read live.

    L = mean over t of w_t GJSD_0.5(q_t, p_t) on S_100(p_t) and its tail,  w_t = min(p_t(y_t) / p_old(y_t), 2)
    q_t = softmax((1 - a) z_base(., c) + a z_theta(., c)) = base^(1 - a) current^a, renormalised

Of the two views' `weight` the second's is a, 0.05: name a `privileged_source` of your own to change it, with the same
options in both but for `weight`, `name` and `reader`, and no choice by chance.

**Changed**: nothing known in the loss. The rate of the mixture is taken from that of the moving average.

**Fails** as `sdpo` does; and it costs a second teacher forward.
"""

from trl_opsd.methods.base import Method
from trl_opsd.methods.papers import sdpo


METHOD = Method(
    title="Reinforcement Learning via Self-Distillation",
    paper="2601.20802",
    label="code",
    needs="a reward and several rollouts of a prompt",
    defaults=sdpo.METHOD.defaults
    | {
        "distillation_target": "geometric",
        "teacher_model_kind": "base",
        "privileged_source": {
            "all_of": [
                {"sibling": {"name": "start", "weight": 0.95}},
                {"sibling": {"name": "current", "weight": 0.05, "reader": "live"}},
            ]
        },
    },
)
