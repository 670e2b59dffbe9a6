# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""OP2SD: a worked example of another problem is what the teacher reads."""

import pytest
from datasets import Dataset

from batches import batch_of
from method_cases import check_loss


ROWS = [
    {"prompt": [{"role": "user", "content": f"What is {i} + 1?"}], "privileged_context": f"It is {i + 1}."}
    for i in range(6)
]


def forward(log_p, log_qs, labels):
    return (log_qs[0].exp() * (log_qs[0] - log_p)).sum(-1)


def test_loss():
    check_loss("op2sd", ["privileged"], forward)


def test_the_example_is_another_problem_with_its_own_solution(make_trainer):
    trainer = make_trainer(method="op2sd", dataset=Dataset.from_list(ROWS))
    batch_of(trainer)
    pairs = {row["prompt"][0]["content"]: row["privileged_context"] for row in ROWS}
    for rollout, (view,) in zip(trainer.collected.rollouts, trainer.collected.views, strict=True):
        problem, solution = view.context.split("\n\n")
        assert pairs[problem] == solution and problem != rollout.prompt[0]["content"]
        assert view.text == (
            f"Here is a worked example of another problem:\n\n{view.context}\n\nNow work on the problem above."
        )


def test_without_another_problem_there_is_no_view(make_trainer):
    with pytest.raises(ValueError, match="needs rows of at least two prompts"):
        make_trainer(method="op2sd", dataset=Dataset.from_list(ROWS[:1] * 4))
