# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
A teacher that is renewed by the clock may copy a student that has gone astray, and an average takes it in slowly. Here
it stands still between gates, and is renewed at one only if the student's reward has risen since the last renewal and
the tail of its lengths is safe.

    at every n-th step:  renew if  mean reward > that of the last renewal + m  and
                         the 95th percentile of lengths <= f times its first  and  truncated share <= u
    L = mean over t of KL(q_t || p_t),  q_t of the snapshot

Options: `every` is n, `margin` m, `tail` f, `truncated` u. Means are over the steps since the last gate. The first gate
only sets the marks to compare with.

**Changed**: only a summary was read. That both conditions must hold is the paper's; how they are measured, their
bounds, and the divergence are ours: a proposed reading. The loss may be any: the config's other options say which, and
with `policy_weight: 0` rewards open gates alone.

**Fails** where the reward is so noisy that it rises by chance between two gates, or never rises: the teacher is then
the start's.
"""

import math

from trl_opsd.methods.base import Method, State, StepSummary
from trl_opsd.options import Count, Positive, Share


START = {"steps": 0, "reward": 0.0, "tail": 0.0, "truncated": 0.0}  # sums since the last gate


def update_state(summary: StepSummary) -> State:
    state, options = dict(summary.state), summary.options
    new = {"steps": 1, "reward": summary.reward, "tail": summary.tail_length, "truncated": summary.truncated}
    state |= {name: state[name] + value for name, value in new.items()} | {"renew": 0.0}
    if summary.step % options["every"]:
        return state
    mean = {name: state[name] / state["steps"] for name in START}
    first = math.isnan(state["best"])
    better = mean["reward"] > state["best"] + options["margin"]
    safe = mean["tail"] <= options["tail"] * state["safe"] and mean["truncated"] <= options["truncated"]
    marks = {"best": mean["reward"], "safe": mean["tail"]} if first else {"best": mean["reward"]}
    return {**state, **START, **(marks if first or (better and safe) else {}), "renew": float(better and safe)}


METHOD = Method(
    title="When Should the Teacher Move? Temporal Coupling and Stability in Self On-Policy Distillation",
    paper="2606.03532",
    label="proposed reading",
    needs="a reward, and a context in a column or a source",
    reads_reward=True,
    defaults={"distillation_alpha": 0.0, "teacher_model_kind": "snapshot"},
    options={"every": 20, "margin": 0.0, "tail": 1.5, "truncated": 0.5},
    option_types={"every": Count, "margin": float, "tail": Positive, "truncated": Share},
    state={**START, "best": math.nan, "safe": math.nan, "renew": 0.0},
    update_state=update_state,
    should_sync_teacher=lambda state: state["renew"] > 0,
)
