# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Conditions on which a source is asked for a rollout: functions of the rollout and its group, for [`When`]. Those of
rewards and successes raise a ValueError in a run that has no reward.
"""

import math
from collections.abc import Callable
from typing import Annotated, TypeVar

from trl_opsd.options import OneOf, PositiveShare, Share, checked
from trl_opsd.privileged.base import rollout_rng
from trl_opsd.privileged.checks import check_scored
from trl_opsd.privileged.transcripts import without_thinking
from trl_opsd.privileged.votes import NUMBER, answer_reader, majority
from trl_opsd.rollouts.rollout import ROLES, Group, Rollout, reaches


Condition = Callable[[Rollout, Group], bool]

Maker = TypeVar("Maker", bound=Callable[..., Condition])

CONDITIONS: dict[str, Callable[..., Condition]] = {}  # by their name in recipes


def _named(make: Maker) -> Maker:
    """Decorator that lets recipes name a condition as its function is called, and checks its options."""
    CONDITIONS[make.__name__] = checked(make)
    return CONDITIONS[make.__name__]


def _of_rewards(condition: Condition, name: str) -> Condition:
    """Condition that raises an error in a run without rewards, where it would mean nothing."""

    def scored(rollout: Rollout, group: Group) -> bool:
        check_scored(rollout, f"The condition `{name}`")
        return condition(rollout, group)

    scored.__name__, scored.needs_reward = name, True
    return scored


def _of_groups(condition: Condition, name: str) -> Condition:
    """Condition that means nothing for a rollout alone."""
    condition.__name__, condition.needs_groups = name, True
    return condition


@_named
def failed() -> Condition:
    """Rollouts without success."""
    return _of_rewards(lambda rollout, group: not rollout.success, "failed")


@_named
def succeeded() -> Condition:
    """Rollouts with success."""
    return _of_rewards(lambda rollout, group: rollout.success, "succeeded")


@_named
def group_failed() -> Condition:
    """Rollouts of a group without any success."""
    return _of_rewards(lambda rollout, group: not any(one.success for one in group), "group_failed")


@_named
def role(name: Annotated[str, OneOf(ROLES)]) -> Condition:
    """
    Rollouts of a role under `turns`.

    Args:
        name (`str`): The role, such as `"first"`.
    """
    return lambda rollout, group: rollout.role == name


@_named
def truncated() -> Condition:
    """Rollouts that ended for want of length."""
    return lambda rollout, group: rollout.truncated


@_named
def reward_from(value: float, function: str | None = None) -> Condition:
    """
    Rollouts whose reward is at least a value, such as those that a verifier accepts.

    Args:
        value (`float`): Least reward.
        function (`str`, *optional*): Name of a reward function. `None` means the total.
    """
    return _of_rewards(lambda rollout, group: reaches(_reward(rollout, function), value), "reward_from")


@_named
def group_reward_below(value: float) -> Condition:
    """Rollouts of a group whose best total is below a value."""
    return _of_rewards(lambda rollout, group: not any(reaches(one.total, value) for one in group), "group_reward_below")


@_named
def most_errors() -> Condition:
    """Rollout with the most tool errors of its group, the first of several; none where no call failed."""

    def has_most(rollout: Rollout, group: Group) -> bool:
        counts = [sum(len(turn.errors) for turn in one.turns) for one in group]
        return max(counts) > 0 and rollout.index == group[counts.index(max(counts))].index

    return has_most


@_named
def above_group_mean() -> Condition:
    """Rollouts whose total is above the mean of their group: those of positive advantage."""

    def is_above(rollout: Rollout, group: Group) -> bool:
        totals = [one.total for one in group if has_reward(one)]
        return has_reward(rollout) and not reaches(sum(totals) / len(totals), rollout.total)

    return _of_groups(_of_rewards(is_above, "above_group_mean"), "above_group_mean")


@_named
def consensus(least_share: PositiveShare = 0.5, answer: str | Callable[[str], str | None] = NUMBER) -> Condition:
    """
    Rollouts of a group of which enough give the same answer (GATES, 2602.20574), and at least two. It needs no reward,
    and never holds for a prompt with a single rollout.

    Args:
        least_share (`float`, *optional*, defaults to `0.5`): Share of the group that must give it.
        answer (`str` or `Callable`, *optional*): How it is read: see `answer` of [`PseudoReference`].
    """
    read = answer_reader(answer)
    return _of_groups(
        lambda rollout, group: majority([read(without_thinking(one.text)) for one in group], least_share) is not None,
        "consensus",
    )


@_named
def probability(p: Share, seed: int = 0) -> Condition:
    """
    Each rollout with this probability.

    Args:
        p (`float`): From 0 to 1.
        seed (`int`, *optional*, defaults to `0`): Of the draw.
    """
    return lambda rollout, group: rollout_rng(rollout, seed, "probability").random() < p


def _reward(rollout: Rollout, function: str | None) -> float:
    if function is None:
        return rollout.total
    if function not in rollout.rewards:
        raise ValueError(f"There is no reward function {function!r}, only {sorted(rollout.rewards)}.")
    return rollout.rewards[function]


def has_reward(rollout: Rollout) -> bool:
    """Whether a rollout was scored."""
    return not math.isnan(rollout.total)
