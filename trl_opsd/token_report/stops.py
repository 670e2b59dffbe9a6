# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Probability of stop tokens on both sides, as far as the lists of likeliest tokens tell it."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from trl_opsd.token_report.record import Line


@dataclass(frozen=True)
class StopMass:
    """
    Mean probability of the stop tokens: a lower bound, as lists end.

    Args:
        texts (`list[str]`): The stop tokens.
        ends (`int`): Completions that end on one, and are taught to.
        student_end, teacher_end (`float`): Probability there.
        others (`int`): All other taught tokens.
        student_before, teacher_before (`float`): Probability there: of stopping earlier.
    """

    texts: list[str]
    ends: int
    student_end: float
    teacher_end: float
    others: int
    student_before: float
    teacher_before: float


def stop_mass(rollouts: Sequence[Line], head: Line) -> StopMass | None:
    """Mean probability of the stop tokens at the ends of completions and before; `None` where no side has one."""
    stops = set(head["stops"])
    ends, others = [], []
    for line in rollouts:
        for position, token in enumerate(line["ids"]):
            masses = _masses(line, position, stops)
            if masses is not None:
                at_end = position == len(line["ids"]) - 1 and token in stops
                (ends if at_end else others).append(masses)
    if not ends and not any(map(any, others)):
        return None
    of_ends, before = ([_mean(one[side] for one in part) for side in (0, 1)] for part in (ends, others))
    texts = sorted(head["strings"][str(token)] for token in stops)
    return StopMass(texts, len(ends), *of_ends, len(others), *before)


def _masses(line: Line, position: int, stops: Collection[int]) -> tuple[float, float] | None:
    """Probability of stop tokens under student and teacher at a distilled token, of several views by their shares."""
    student: dict[int, float] = {}
    teacher, whole = 0.0, 0.0
    for name, view in line["views"].items():
        share = view["share"][position]
        if not share or line["p"][position] is None:
            continue
        known = _known(line, name, position)
        student |= {token: p for token, (p, _) in known.items() if token in stops}
        teacher += share * sum(q for token, (_, q) in known.items() if token in stops)
        whole += share
    return (sum(student.values()), teacher / whole) if whole else None


def _known(line: Line, view: str, position: int) -> dict[int, tuple[float, float]]:
    """Probabilities under both sides of the tokens that the record tells there."""
    own = line["views"][view]
    rows = [(line["ids"][position], line["p"][position], own["q"][position])]
    if "top" in line:
        top = line["top"]
        rows += zip(top["ids"][position], top["p"][position], top["q"][view][position], strict=True)
        rows += zip(own["top"]["ids"][position], own["top"]["p"][position], own["top"]["q"][position], strict=True)
    return {token: (_probability(p), _probability(q)) for token, p, q in rows}


def _probability(log: float | None) -> float:
    return 0.0 if log is None else math.exp(log)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
