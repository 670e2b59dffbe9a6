# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The student learns to write the feedback that it is given, beside learning from rewards: after a wrong answer y0 it is
asked for a criticism of it, and is trained on the words of the critic c0. What it can say of a mistake, it should
sooner avoid.

    first      A = R0 - mean R0,  R0 = r0 + gamma r1
    second     A = r1 - mean r1
    feedback   A = lambda at every token of c0, given (x, y0): lambda times the cross-entropy

Options: `feedback` is lambda, `gamma` the part of the second turn's reward in the return of the first. The request for
the criticism is `feedback_template` of `turns`. With the slots `[first, feedback]` no second turn is written, and
`gamma` does nothing.

**Changed**: TRL's mean over the tokens of all rows in place of a sum, for both parts alike. The critic is `critic` with
the student's own weights, which leaves it little to learn: name another author, or a source of verified feedback.

**Fails** where the feedback can't be told from question and answer, as with the words of a reference that the student
does not know: it then learns to make them up.
"""

from trl_opsd.methods.base import Method, StepContext
from trl_opsd.methods.unit_credit import first_and_second
from trl_opsd.options import NonNegative, Share
from trl_opsd.rollouts.rollout import Group


def credit(groups: list[Group], step_context: StepContext) -> list[list[float]]:
    weight, gamma = (step_context.options[name] for name in ("feedback", "gamma"))
    return [
        [
            weight if one.role == "feedback" else value
            for one, value in zip(group, first_and_second(group, gamma), strict=True)
        ]
        for group in groups
    ]


METHOD = Method(
    title="Expanding the Capabilities of Reinforcement Learning via Text Feedback",
    paper="2602.02482",
    label="code",
    needs="a reward, and a critic or another source of feedback",
    needs_reward=True,
    defaults={
        "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0,
        "teacher_model_kind": "live",
        "privileged_source": "none",
        "turns": {
            "slots": ["first", "second", "feedback"],
            "source": {"with_attempt": "critic"},
            "when": "failed",
            "otherwise": "idle",
        },
    },
    options={"feedback": 0.1, "gamma": 0.1},
    option_types={"feedback": NonNegative, "gamma": Share},
    roles=("first", "feedback"),
    credit=credit,
)
