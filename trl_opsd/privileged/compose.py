# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Sources made of sources. Every part is asked on every process, also where none of its rollouts wants a view, so that a
part may use collectives.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from trl_opsd.privileged.asking import call, call_all, rollouts_of
from trl_opsd.privileged.base import Run, set_up, together
from trl_opsd.privileged.conditions import Condition
from trl_opsd.rollouts.message_images import image_content
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.view import PrivilegedSource, View, Views


def restrict_to(groups: list[Group], wanted: Callable[[Rollout, Group], bool]) -> list[Group]:
    """The same groups, in which only some of the wanted rollouts are wanted."""
    return [[replace(one, wanted=one.wanted and wanted(one, group)) for one in group] for group in groups]


def mask_unwanted(groups: list[Group], views: Views) -> Views:
    """The views of the wanted rollouts, none of the others."""
    return [row if rollout.wanted else [] for rollout, row in zip(rollouts_of(groups), views, strict=True)]


class Composite:
    """Hands set-up and state on to its parts."""

    def __init__(self, *parts: PrivilegedSource):
        self.parts = parts
        self.run: Run | None = None

    def setup(self, run: Run) -> None:
        self.run = run
        for part in self.parts:
            if hasattr(part, "setup"):
                part.setup(run)

    def alone(self, work: Callable[[], Any], who: Any) -> Any:
        """The result of what may fail on one process, where another part or process would wait for it in vain."""
        return together(set_up(self.run, self), work, who) if self.uses_model else work()

    def check(self, dataset: Any, name: str) -> None:
        for part in self.parts:
            if hasattr(part, "check"):
                part.check(dataset, name)

    @property
    def columns(self) -> list[str]:
        return [column for part in self.parts for column in getattr(part, "columns", [])]

    @property
    def uses_model(self) -> bool:
        return any(getattr(part, "uses_model", False) for part in self.parts)

    @property
    def counts(self) -> dict[str, float]:
        """Sums over the parts."""
        total: Counter[str] = Counter()
        for part in self.parts:
            total.update(getattr(part, "counts", {}))
        return dict(total)

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts) if hasattr(part, "state_dict")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            if str(i) in state:
                part.load_state_dict(state[str(i)])


class FirstOf(Composite):
    """
    The views of the first source that has any for a rollout.

    Args:
        sources (`PrivilegedSource`): In the order in which they are asked.
    """

    def __call__(self, groups: list[Group]) -> Views:
        found: dict[int, list[View]] = {}
        for part in self.parts:
            left = restrict_to(groups, lambda rollout, _, found=found: rollout.index not in found)
            views = mask_unwanted(left, self.alone(lambda part=part, left=left: call(part, left), part))
            found.update({one.index: row for one, row in zip(rollouts_of(left), views, strict=True) if row})
        return [found.get(rollout.index, []) for rollout in rollouts_of(groups)]


class AllOf(Composite):
    """
    The views of all sources together. Their names must differ; async sources wait at the same time, unless one of them
    lets the model write.

    Args:
        sources (`PrivilegedSource`): The sources.
    """

    def __call__(self, groups: list[Group]) -> Views:
        if self.uses_model:
            answers = [self.alone(lambda part=part: call(part, groups), part) for part in self.parts]
        else:
            answers = call_all(list(self.parts), groups)
        answers = [mask_unwanted(groups, views) for views in answers]
        return [[view for views in row for view in views] for row in zip(*answers, strict=True)]


class When(Composite):
    """
    A source for some rollouts only.

    Args:
        condition (`Callable[[Rollout, list[Rollout]], bool]`): Of a rollout and its group. See
            [`trl_opsd.privileged.conditions`].
        source (`PrivilegedSource`): What they are given.
    """

    def __init__(self, condition: Condition, source: PrivilegedSource):
        super().__init__(source)
        self.condition = condition

    def __call__(self, groups: list[Group]) -> Views:
        groups = self.alone(lambda: restrict_to(groups, self.condition), self)
        return mask_unwanted(groups, call(self.parts[0], groups))


class Cached(Composite):
    """
    Keeps the views of each row, for a source that looks at nothing but the row and costs something.

    Args:
        source (`PrivilegedSource`): The source.
        key (`Callable[[Rollout], str]`, *optional*): What rollouts with the same views have in common. `None` means
            their row.
    """

    def __init__(self, source: PrivilegedSource, key: Callable[[Rollout], str] | None = None):
        super().__init__(source)
        self.key = key or row_key
        self.kept: dict[str, list[View]] = {}

    def __call__(self, groups: list[Group]) -> Views:
        asked: set[str] = set()

        def is_new(rollout: Rollout, _: Group) -> bool:
            if not rollout.wanted or self.key(rollout) in self.kept or self.key(rollout) in asked:
                return False
            asked.add(self.key(rollout))
            return True

        new = restrict_to(groups, is_new)
        for rollout, views in zip(rollouts_of(new), call(self.parts[0], new), strict=True):
            if rollout.wanted:
                self.kept[self.key(rollout)] = views
        return [self.kept[self.key(one)] if one.wanted else [] for one in rollouts_of(groups)]


def row_key(rollout: Rollout) -> str:
    """The row as text: rollouts of equal rows share it. Images count by their content."""
    return json.dumps(rollout.row, sort_keys=True, default=_shown)


def _shown(value: Any) -> str:
    # The text of an image holds its address in memory, and that of a large array a few of its numbers
    return image_content(value) if hasattr(value, "getpalette") or hasattr(value, "dtype") else repr(value)
