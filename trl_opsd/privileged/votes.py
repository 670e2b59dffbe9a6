# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Majority votes: answers read from rollouts, and the majority of a group."""

import re
from collections import Counter
from collections.abc import Callable

from trl_opsd.privileged.imports import imported


NUMBER = r"[-+]?\d+(?:[.,]\d+)*"


def answer_reader(answer: str | Callable[[str], str | None]) -> Callable[[str], str | None]:
    """Function that reads an answer from a rollout's text: see `answer` of `PseudoReference`."""
    if callable(answer):
        return answer
    if answer.startswith("function:"):
        return imported(answer.removeprefix("function:"), "answer", takes=1)
    try:
        pattern = re.compile(answer)
    except re.error as error:
        raise ValueError(f"`answer` is no regular expression: {error}.") from None
    return lambda text: _last_match(pattern, text)


def majority(answers: list[str | None], least_share: float) -> str | None:
    """Majority answer, `None` where two have as many votes or the first one has too few."""
    votes = Counter(answer for answer in answers if answer is not None).most_common(2)
    tied = len(votes) == 2 and votes[0][1] == votes[1][1]
    return votes[0][0] if votes and not tied and votes[0][1] >= least_share * len(answers) else None


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    return matches[-1].group(1 if pattern.groups else 0)
