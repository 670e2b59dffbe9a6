# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Credit of first and second turns within a group, which methods of turns share. Totals without a reward are `nan`."""

import math
from collections.abc import Iterable

from trl_opsd.rollouts.rollout import Group


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are there, 0 without any."""
    there = [value for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else 0.0


def second_totals(group: Group) -> dict[int, float]:
    """Total reward of each unit's second turn, by the index of its attempt. Both roles of it hold one text."""
    return {one.attempt.index: one.total for one in group if one.role in ("second", "distil")}


def first_and_second(group: Group, gamma: float) -> list[float]:
    """
    Advantages of the `first` and `second` rows of a group, 0 in other roles and without a reward: their returns less
    the mean of these over the units that have the turn.

    Args:
        group (`list[Rollout]`): The group.
        gamma (`float`): Part of the second turn's reward in the return of the first, R0 = r0 + gamma r1.
    """
    second = second_totals(group)
    returns = {
        one.index: one.total + gamma * second.get(one.attempt.index if one.attempt else -1, 0.0)
        for one in group
        if one.role == "first"
    }
    baselines = {"first": mean(returns.values()), "second": mean(second.values())}
    values = [
        returns.get(one.index, one.total) - baselines[one.role] if one.role in baselines else 0.0 for one in group
    ]
    return [0.0 if math.isnan(value) else value for value in values]
