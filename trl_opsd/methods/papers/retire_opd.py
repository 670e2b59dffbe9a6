# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The teacher goes into retirement. GRPO and the reverse KL to a teacher that reads skills are trained together; once the
student no longer comes closer to the teacher and is nearly as successful, the KL is dropped for good, and GRPO alone
goes beyond the teacher.

    L = L_GRPO + w mean over t of KL(p_t || q_t),  w = 1, and 0 from the end of the first window k with
    (D_{k-1} - D_k) / |D_{k-1}| < rate  and  R_k >= share R_teacher

D_k is the mean of the KL over the steps of window k, and R_k that of the reward. Options: `window` in steps, `rate`,
`share`, and `goal`, R_teacher, which an evaluation with `eval_teacher_prompts` measures.

**Changed**: the two conditions, their check once a window, the reverse KL and the share of 0.9 are published. Windows
that stand side by side, their means, the relative change, and the values of `window` and `rate` are our reading. The
paper first trains its teacher on rewards, with skills in the prompt; give it as `teacher_model_kind: checkpoint`.

**Fails** with a teacher whom the context alone has not made able: the student may never reach it, or reach it before it
has learned anything. The retired teacher still reads each rollout, for the log.
"""

import math

from trl_opsd.methods.base import Method, State, StepContext, StepSummary
from trl_opsd.options import Count, NonNegative, Positive, Share


SUMS = {"divergence": 0.0, "divergences": 0.0, "reward": 0.0, "rewards": 0.0}  # of this window, and their counts


def update_state(summary: StepSummary) -> State:
    options, state = summary.options, dict(summary.state)
    if state["weight"] == 0:
        return state
    for name, value in (("divergence", summary.logged.get("divergence", math.nan)), ("reward", summary.reward)):
        if not math.isnan(value):
            state[name], state[f"{name}s"] = state[name] + value, state[f"{name}s"] + 1
    if summary.step % options["window"]:
        return state
    divergence, reward = (
        state[name] / state[f"{name}s"] if state[f"{name}s"] else math.nan for name in ("divergence", "reward")
    )
    before = state["before"]
    stalls = before - divergence < options["rate"] * abs(before)  # before the first window it is infinite
    able = reward >= options["share"] * options["goal"]
    return {
        "weight": 0.0 if stalls and able else 1.0,
        "before": before if math.isnan(divergence) else divergence,
        **SUMS,
    }


def distillation_weight(step_context: StepContext) -> float:
    return step_context.state["weight"]


METHOD = Method(
    title="RetireOPD: Self-Retiring On-Policy Distillation for Agentic Reinforcement Learning",
    paper="2609.20784",
    authors="Yan Yu and Zhengxi Lu and Yizhou Liu and Yichen Pan and Aozhe Wang and Qipeng Chen and Hua Yang and "
    "Wenqi Zhang and Weiming Lu and Qianglong Chen and Yongliang Shen",
    label="proposed reading",
    needs="a reward, and skills in a column",
    needs_reward=True,
    defaults={"distillation_alpha": 1.0, "teacher_model_kind": "base"},
    options={"window": 10, "rate": 0.05, "share": 0.9, "goal": 1.0},
    option_types={"window": Count, "rate": NonNegative, "share": Share, "goal": Positive},
    state={"weight": 1.0, "before": math.inf, **SUMS},
    distillation_weight=distillation_weight,
    update_state=update_state,
)
