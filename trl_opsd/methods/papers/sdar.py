# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Distillation beside RL for agents, through a gate on each token. Tokens that the teacher finds likelier than the student
are pulled up; what the teacher rejects is nearly left alone, because a rejection may come from a context that was
badly retrieved or used. RL stays the main objective.

    L = L_RL + lambda mean over t of g_t (log q(y_t) - log p(y_t)),  g_t = sg sigmoid(beta Delta_t)

The gradient passes through log p alone: each token is pulled up by g_t, which is between 0 and 1. Option: `beta`;
lambda = 0.1 is `distillation_weight`.

**Changed**: TRL's clip acts on the sum of both advantages. The formula and beta = 5 are as several public forks of the
authors' code have them; that code itself was not read, and the paper is known to us by its abstract.

**Fails** to vanish where teacher and student agree: there g_t is 1/2, so that it makes the student's own samples
likelier, right or wrong, and only lambda keeps that small.
"""

import torch

from trl_opsd.methods.base import Method, TokenSignals
from trl_opsd.options import NonNegative


def advantages(signals: TokenSignals) -> torch.Tensor:
    """Advantages `(B, C)`: the verifier's own at tokens without a teacher."""
    gate = (signals.options["beta"] * signals.gap).sigmoid() * signals.mask
    return signals.advantages + signals.scale * gate


METHOD = Method(
    title="Self-Distilled Agentic Reinforcement Learning",
    paper="2605.15155",
    authors="Zhengxi Lu and Zhiyuan Yao and Zhuowen Han and Zi-Han Wang and Jinyang Wu and Qi Gu and Xunliang Cai and "
    "Weiming Lu and Jun Xiao and Yueting Zhuang and Yongliang Shen",
    label="code",
    needs="a reward, and skills or other help in a column",
    needs_reward=True,
    defaults={
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "distillation_weight": 0.1,
        "teacher_model_kind": "live",
    },
    options={"beta": 5.0},
    option_types={"beta": NonNegative},
    advantages=advantages,
)
