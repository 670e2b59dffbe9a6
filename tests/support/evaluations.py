# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Small evaluation sets, and completions that depend on the prompt alone."""

from datasets import Dataset


ROWS = 6


def question(i: int, context: str | None) -> dict:
    return {"prompt": [{"role": "user", "content": f"What is {i}?"}], "privileged_context": context}


def dataset(with_view: int = 4, count: int = ROWS) -> Dataset:
    return Dataset.from_list([question(i, f"It is {i}." if i < with_view else None) for i in range(count)])


def scripted(trainer):
    """Completions of one to seven tokens from the prompt and the place in the pair, and a reward from their length."""

    def single_turn(prompt_ids, *_, **__):
        seeds = [sum(ids) + 31 * (i % 2) for i, ids in enumerate(prompt_ids)]
        return [[3 + (s * (j + 7)) % 250 for j in range(s % 7)] + [2] for s in seeds], None

    trainer._generate_single_turn = single_turn
    return trainer


def by_length(completion_ids, **_):
    return [float(len(ids) % 3) for ids in completion_ids]
