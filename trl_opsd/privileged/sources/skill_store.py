# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Skills, the summaries of finished trajectories, and the store that keeps the best of them."""

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any


_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Skill:
    """
    What was learnt from the trajectories of one task.

    Args:
        key (`str`): Under which it is found.
        task (`str`): The task.
        success, mistakes, workflow (`str`): What worked, what went wrong, and how to go about it.
        reward (`float`, *optional*): Of the best trajectory.
        step (`int`): Optimizer step at which it was written.
    """

    key: str
    task: str
    success: str
    mistakes: str
    workflow: str
    reward: float | None
    step: int

    @property
    def rank(self) -> tuple[float, int]:
        """Skills of a higher reward are better, then newer ones."""
        return (-math.inf if self.reward is None else self.reward, self.step)


@dataclass
class SkillStore:
    """
    At most `size` skills, one of each key and task. Equal stores that are given equal skills in one order stay equal.

    Args:
        size (`int`): Most skills.
        skills (`dict[tuple[str, str], Skill]`): By key and task.
    """

    size: int
    skills: dict[tuple[str, str], Skill] = field(default_factory=dict)

    def add(self, skill: Skill) -> int:
        """Take a skill, unless that task has one of a higher reward. Beyond the size the one of the lowest reward
        leaves, of equal ones the oldest. Returns how many have left."""
        place = (skill.key, skill.task)
        old = self.skills.get(place)
        if old is None or old.rank <= skill.rank:
            self.skills[place] = skill
        if len(self.skills) <= self.size:
            return 0
        del self.skills[min(self.skills, key=lambda place: self.skills[place].rank)]
        return 1

    def of_key(self, key: str, k: int) -> list[Skill]:
        """The `k` best skills of a key."""
        return sorted((one for one in self.skills.values() if one.key == key), key=_best_first)[:k]

    def alike(self, task: str, k: int) -> list[Skill]:
        """The `k` skills whose tasks share most words with this one, by Jaccard's index, and any at all."""
        words = _words(task)
        scored = [
            (len(words & own) / len(words | own), one) for one in self.skills.values() if (own := _words(one.task))
        ]
        scored = sorted((pair for pair in scored if pair[0]), key=lambda pair: (-pair[0], *_best_first(pair[1])))
        return [skill for _, skill in scored[:k]]

    def state(self) -> list[dict[str, Any]]:
        """Its skills in order, for JSON."""
        return [asdict(skill) for skill in self.skills.values()]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Take up what [`state`] gave, up to the size."""
        self.skills = {}
        for skill in state:
            self.add(Skill(**skill))


def _best_first(skill: Skill) -> tuple[float, int]:
    reward, step = skill.rank
    return -reward, -step


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
