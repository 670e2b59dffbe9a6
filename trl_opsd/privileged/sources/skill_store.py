# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Store of skills, the summaries of finished trajectories: it keeps the best of them."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from trl_opsd.rollouts.text import normalised, words


@dataclass(frozen=True)
class Skill:
    """
    Summary of the trajectories of one task.

    Args:
        key (`str`): Key under which it is found.
        task (`str`): Text of the task.
        success, mistakes, workflow (`str`): What worked, what went wrong, and the best steps.
        reward (`float`, *optional*): Reward of the best trajectory.
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
        """Sort key: skills of a higher reward are better, then newer ones."""
        return (-math.inf if self.reward is None else self.reward, self.step)


@dataclass
class SkillStore:
    """
    Store of at most `size` skills, one of each key and task, in whatever spelling. Equal stores that are given equal
    skills in one order stay equal.

    Args:
        size (`int`): Most skills.
        skills (`dict[tuple[str, str], Skill]`): By key and the normal form of the task.
    """

    size: int
    skills: dict[tuple[str, str], Skill] = field(default_factory=dict)
    _words: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def add(self, skill: Skill) -> int:
        """Add a skill, unless its task has one of a higher reward. Beyond the size the one of the lowest reward is
        evicted, of equal ones the oldest. Returns the number of evicted skills."""
        key = (skill.key, normalised(skill.task))
        old = self.skills.get(key)
        if old is None or old.rank <= skill.rank:
            self.skills[key], self._words[key] = skill, frozenset(words(skill.task))
        if len(self.skills) <= self.size:
            return 0
        worst = min(self.skills, key=lambda key: self.skills[key].rank)
        del self.skills[worst], self._words[worst]
        return 1

    def of_key(self, key: str, k: int) -> list[Skill]:
        """Best `k` skills of a key."""
        return sorted((one for one in self.skills.values() if one.key == key), key=_best_first)[:k]

    def alike(self, task: str, k: int) -> list[Skill]:
        """At most `k` skills whose tasks share most words with this one, by Jaccard's index, and at least one word."""
        asked = frozenset(words(task))
        shared = ((len(asked & own), own, key) for key, own in self._words.items())
        scored = [(count / (len(asked) + len(own) - count), self.skills[key]) for count, own, key in shared if count]
        scored.sort(key=lambda pair: (-pair[0], *_best_first(pair[1])))
        return [skill for _, skill in scored[:k]]

    def state_dict(self) -> list[dict[str, Any]]:
        """Skills in order, as JSON."""
        return [asdict(skill) for skill in self.skills.values()]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restore what [`state_dict`] returned, up to the size."""
        self.skills, self._words = {}, {}
        for skill in state:
            self.add(Skill(**skill))


def _best_first(skill: Skill) -> tuple[float, int]:
    reward, step = skill.rank
    return -reward, -step
