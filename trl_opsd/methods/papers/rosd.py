# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
A reflector, by default the model itself, reads the problem, a correct rollout of the group and a wrong one, quotes the
first error word for word and explains it. The teacher reads the solution and the explanation, and teaches the wrong
rollout only from the quote on: what came before it was right. Correct rollouts are taught in full.

    L = mean over t in M of w_t GJSD_0.5(q_t, p_t) on S_100(p_t) and its tail,  w_t = min(p_t(y_t) / p_old(y_t), 2)
    M = the tokens from the quote on in wrong rollouts, all tokens in correct ones

The source's own options (`failed_groups`, `teach_correct`, `threshold`, ...) are those of `reflection` in
docs/privileged.md. The rewards only say who succeeded: there is no policy term.

**Changed**: nothing known in the loss, which is SDPO's. The reflector's instruction is in our own words. A quote is
also found where it is nearly, not exactly, in the rollout (`threshold: 1.0` takes exact ones only).

**Fails** where the reflector is too weak: quotes that are not in the rollout give no view, and a wrong explanation
teaches a wrong thing. Groups that all succeed or all fail teach nothing.
"""

from trl_opsd.methods.base import Method
from trl_opsd.methods.papers import sdpo


METHOD = Method(
    title="ROSD: Reflective On-Policy Self-Distillation for Language Model Reasoning across Domains",
    paper="2605.28014",
    authors="Ziqi Zhao and Xinyu Ma and Liu Yang and Yujie Feng and Daiting Shi and Jingzhou He and Xin Xin and "
    "Zhaochun Ren and Xiao-Ming Wu",
    label="code",
    needs="a reward and several rollouts of a prompt",
    defaults=sdpo.METHOD.defaults | {"privileged_source": {"reflection": {"max_new_tokens": 1024}}},
)
