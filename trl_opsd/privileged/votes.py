# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Majority votes: answers read from rollouts, and the majority of a group."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from trl_opsd.privileged.imports import imported
from trl_opsd.rollouts.rollout import reaches
from trl_opsd.rollouts.text import normalised


# The sign is none in 5-3, and the point is a full stop in No.5
NUMBER = r"(?:(?<![\w)\]])[-+\u2212])?(?:\d+(?:[.,]\d+)*|(?<![\w.])\.\d+)"


def answer_reader(answer: str | Callable[[str], str | None]) -> Callable[[str], str | None]:
    """Function that reads an answer from a rollout's text: see `answer` of `PseudoReference`."""
    if callable(answer):
        return lambda text: _checked(answer(text))
    if answer.startswith("function:"):
        return answer_reader(imported(answer.removeprefix("function:"), "answer", takes=1))
    try:
        pattern = re.compile(answer)
    except re.error as error:
        raise ValueError(f"`answer` is no regular expression: {error}.") from None
    return lambda text: _last_match(pattern, text)


def majority(answers: list[str | None], least_share: float) -> str | None:
    """
    Majority answer of a group, as it is first spelled.

    Spellings of an answer are one: see [`same_answer`]. One vote is no majority, whatever the share: a rollout would
    vouch for itself.

    Args:
        answers (`list[str]`): Answer of each rollout, `None` or without a character where there is none.
        least_share (`float`): Share of the rollouts that must give it.

    Returns:
        `str` or `None`: `None` where two have as many votes or the first one has too few.
    """
    spelled = [(normalised(answer), answer) for answer in answers if answer is not None and answer.strip()]
    votes = Counter(key for key, _ in spelled).most_common(2)
    tied = len(votes) == 2 and votes[0][1] == votes[1][1]
    if not votes or tied or votes[0][1] < 2 or not reaches(votes[0][1], least_share * len(answers)):
        return None
    return next(answer for key, answer in spelled if key == votes[0][0])


def same_answer(one: str | None, other: str) -> bool:
    """Whether an answer is another in some spelling, such as `1,000` and `1000`."""
    return one is not None and normalised(one) == normalised(other)


def _checked(answer: Any) -> str | None:
    if answer is not None and not isinstance(answer, str):
        raise ValueError(f"The function `answer` must return text or None, got {answer!r}.")
    return answer


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    return matches[-1].group(1 if pattern.groups else 0)
