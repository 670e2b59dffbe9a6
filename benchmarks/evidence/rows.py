# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Rows of the lab's experiments, and sources and rewards of their controls."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from datasets import Dataset

from benchmarks.lab.make import held_out
from benchmarks.lab.tasks import TASKS, correct, result_of
from trl_opsd.privileged import rollouts_of
from trl_opsd.rollouts.rollout import Group
from trl_opsd.rollouts.view import View, Views


TRAIN = {"sum": 2000, "product": 300, "sort": 2000, "rewriting": 300}  # of some there are not more


@cache
def make_rows(task: str) -> Dataset:
    """
    Questions that neither the pre-training nor the scores have, each with its contexts: `solution`, `wrong` (a careless
    solution), `result` and `rule`.
    """
    kind, rng = TASKS[task], random.Random(0)
    rows = []
    for question in held_out(kind, TRAIN[task], part=1):
        solution = kind.worked(question)
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "question": question,
                "solution": solution,
                "wrong": kind.careless(question, rng, 0.0),
                "result": result_of(solution),
                "rule": kind.rule,
            }
        )
    return Dataset.from_list(rows)


def shuffled_feedback(groups: list[Group]) -> Views:
    """The verifier's feedback on another rollout of the batch that has some."""
    rollouts = rollouts_of(groups)
    texts = [one.extra["feedback"] for one in rollouts if one.wanted]
    shift = len(texts) // 2
    others = iter(texts[shift:] + texts[:shift])
    return [[View(next(others))] if one.wanted else [] for one in rollouts]


def shuffled_correct(completions: Sequence[Any], question: Sequence[str], **kwargs: Any) -> list[float]:
    """Rewards of the batch in another order: as many right labels, which say nothing of the answers."""
    rewards = correct(completions, question, **kwargs)
    random.Random("".join(question)).shuffle(rewards)
    return rewards
