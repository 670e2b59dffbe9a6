# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""ATESD: the forward KL, from a part of the solution that a controller chooses."""

import math

from datasets import Dataset

from batches import batch_of
from method_cases import check_loss


STEPS = [f"Step {j}." for j in range(10)]
ROWS = [
    {"prompt": [{"role": "user", "content": f"What is {i} + 1?"}], "solution": "\n\n".join(STEPS), "answer": str(i)}
    for i in range(4)
]


def forward(log_p, log_qs, labels):
    return (log_qs[0].exp() * (log_qs[0] - log_p)).sum(-1)


def test_loss():
    check_loss("atesd", ["privileged"], forward)


def test_the_context_is_the_share_of_the_controller(make_trainer):
    trainer = make_trainer(method="atesd", dataset=Dataset.from_list(ROWS))
    batch_of(trainer)
    count = math.floor(10 * trainer.privileged.controller.share)
    assert 0 < count < 10
    for (view,) in trainer.collected.views:
        assert view.context == "\n\n".join(STEPS[:count])
        assert view.text == (
            f"Here is a solution, maybe a part of it:\n\n{view.context}\n\nNow answer in your own words."
        )


def test_the_answer_is_always_shown(make_trainer):
    source = {"adaptive_exposure": {"answer": "answer"}}
    trainer = make_trainer(method="atesd", privileged_source=source, dataset=Dataset.from_list(ROWS))
    trainer.privileged.controller.share = 0.05
    batch_of(trainer)
    answers = [rollout.row["answer"] for rollout in trainer.collected.rollouts]
    assert [view.context for (view,) in trainer.collected.views] == [f"Answer: {answer}" for answer in answers]
