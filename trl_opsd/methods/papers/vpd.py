# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The teacher that reads the feedback is trained too. In most steps the student is pulled to it on the student's own
answers (M-step). In every few steps, the same weights learn under the prompt with the feedback to tell right answers
from wrong ones (E-step).

An answer is read again for this, and its likelihood ratio to the bare prompt is a reward that should be high for right
answers and low for wrong ones.

    first    A_t = log q(y_t) - log p(y_t), a mean over the tokens of these rows: the reverse KL
    reread   A_t = z beta sigmoid(-z (r - delta)), a mean over these rows of sums over their tokens
             r = beta (log q(y) - log p(y)), z = 1 if y has success, else -1

delta is half the sum of the mean r of right and of wrong answers. q reads the feedback and p the bare prompt, with the
same weights; the side that a row does not train is held constant. `every` of `turns` says how often the E-step is.

Options: `beta`, and `momentum`, by which the two means of delta follow the steps.

**Changed**: one mean over right and wrong answers, where the formula has one for each. delta is a moving mean over
steps in place of that of the batch. A weight between the two steps is not known, and left out.

**Fails** where the feedback tells nothing of the answer: r is then 0 for all, and the E-step makes every right answer
likelier under any feedback. It was seen to fall behind GRPO on mathematics, and to collapse late.
"""

from typing import Annotated

import torch

from trl_opsd.methods.base import Method, State, StepSummary, TokenSignals
from trl_opsd.options import Interval, Positive


CLASSES = {"right": 1.0, "wrong": 0.0}  # of success


def log_ratio(signals: TokenSignals) -> torch.Tensor:
    """r of each `reread` row, `(B, 1)`: its teacher reads the bare prompt, so that the gap is log p - log q."""
    return -signals.options["beta"] * (signals.gap * signals.mask).sum(1, keepdim=True)


def advantages(signals: TokenSignals) -> torch.Tensor:
    beta, state = signals.options["beta"], signals.step_context.state
    z = 2 * signals.success - 1
    middle = (state["right"] + state["wrong"]) / 2
    credit = z * beta * torch.sigmoid(-z * (log_ratio(signals) - middle))
    first = signals.advantages + signals.token_scale("first") * signals.gap
    reread = signals.row_scale("reread") * credit * signals.mask
    return signals.role("first") * first + signals.role("reread") * reread


def metrics(signals: TokenSignals) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Sums of r over the right and the wrong answers that were read again, and how many there are."""
    found = {}
    for name, success in CLASSES.items():
        rows = signals.role("reread") * (signals.success == success)
        found[f"vpd/{name}"] = (rows * log_ratio(signals)).sum(), rows.sum()
    return found


def update_state(summary: StepSummary) -> State:
    state, momentum = dict(summary.state), summary.options["momentum"]
    for name in CLASSES:
        value = summary.logged.get(f"vpd/{name}")
        if value is not None:  # a step without such an answer leaves its mean
            kept = momentum if state[f"{name}_seen"] else 0.0
            state[name], state[f"{name}_seen"] = kept * state[name] + (1 - kept) * value, 1.0
    return state


METHOD = Method(
    title="Variational Policy Distillation",
    paper="2605.15113",
    label="proposed reading",
    needs="a reward, and feedback or another context for the turns",
    reads_reward=True,
    defaults={
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "teacher_model_kind": "live",
        "policy_weight": 0.0,
        "privileged_source": {"turn_context": {"roles": ["first", "reread"], "reader": "live"}},
        "turns": {"slots": ["first", "reread"], "source": "feedback", "every": 5},
    },
    options={"beta": 0.1, "momentum": 0.9},
    option_types={"beta": Positive, "momentum": Annotated[float, Interval(least=0, below=1)]},
    roles=("first", "reread"),
    advantages=advantages,
    metrics=metrics,
    state={"right": 0.0, "wrong": 0.0, "right_seen": 0.0, "wrong_seen": 0.0},
    update_state=update_state,
)
