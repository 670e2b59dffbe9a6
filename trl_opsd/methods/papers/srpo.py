# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Rollouts that failed, and have a successful sibling for the teacher to read, are distilled as in SDPO and have no
advantage; all others are GRPO's. Distilling what is right already is ambiguous, and a teacher that is unsure is not
worth following: its tokens count by their entropy.

    L = 1/N (sum over GRPO's tokens of PPO(A) + sum over the others of w_t JSD(q_t, p_t)),  N all tokens
    w_t = exp(-beta H(q_t)) / mean over those tokens of the same

Option: `beta`. The second sum is SDPO's: the student's 100 likeliest tokens and a tail, alpha 0.5, importance weights
up to 2, a moving average as the teacher.

**Changed**: the mean of the weights is over the micro-batch.

**Fails** with SDPO's teacher: where a sibling's answer in the context does not help the model to continue its own.
"""

import torch

from trl_opsd.losses import TokenStats, TokenWeight
from trl_opsd.methods.base import Method, StepContext
from trl_opsd.options import NonNegative


def token_weight(step_context: StepContext) -> TokenWeight:
    def factors(stats: TokenStats) -> torch.Tensor:
        sizes = (-step_context.options["beta"] * stats.teacher_entropy).exp() * stats.taught  # (K, t)
        return sizes * stats.taught.sum().clamp(min=1) / sizes.sum().clamp(min=torch.finfo(sizes.dtype).tiny)

    return factors


METHOD = Method(
    title="Unifying Group-Relative and Self-Distillation Policy Optimization via Sample Routing",
    paper="2604.02288",
    authors="Gengsheng Li and Tianyu Yang and Junfeng Fang and Mingyang Song and Mao Zheng and Haiyun Guo and "
    "Dan Zhang and Jinqiao Wang and Tat-Seng Chua",
    label="paper",
    needs="a reward, and groups in which some rollouts succeed",
    needs_reward=True,
    reads_teacher_entropy=True,
    defaults={
        "distillation_mode": "topk_logits",
        "distillation_topk": 100,
        "distillation_add_tail": True,
        "distillation_alpha": 0.5,
        "distillation_is_clip": 2.0,
        "distillation_reduction": "joint_token_mean",
        "teacher_model_kind": "ema",
        "privileged_source": {"sibling": {"skip_successes": True, "policy": False}},
    },
    options={"beta": 1.0},
    option_types={"beta": NonNegative},
    token_weight=token_weight,
    needs_all_tokens=True,
    micro_batch_statistics=True,
)
