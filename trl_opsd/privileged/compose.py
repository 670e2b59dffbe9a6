# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Composition of sources. Every part is asked on every process, also where none of its rollouts wants a view, so that a
part may use collectives.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from datasets import Dataset, IterableDataset

from trl_opsd.privileged.asking import call, call_all, rollouts_of
from trl_opsd.privileged.base import Run, Source, as_source
from trl_opsd.privileged.checks import check_needs, source_name
from trl_opsd.privileged.conditions import Condition
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.step_summary import StepSummary
from trl_opsd.rollouts.view import PrivilegedSource, View, Views


def restrict_to(groups: list[Group], wanted: Callable[[Rollout, Group], bool]) -> list[Group]:
    """Groups in which only those wanted rollouts stay wanted for which `wanted` holds."""
    return [[replace(one, wanted=one.wanted and wanted(one, group)) for one in group] for group in groups]


def mask_unwanted(groups: list[Group], views: Views) -> Views:
    """Views of the wanted rollouts, none of the others."""
    return [row if rollout.wanted else [] for rollout, row in zip(rollouts_of(groups), views, strict=True)]


class Composite(Source):
    """
    Base of sources made of sources. Every hook is forwarded to the parts.

    Args:
        parts (`PrivilegedSource`): The sources, each wrapped by [`as_source`].
    """

    def __init__(self, *parts: PrivilegedSource):
        self.parts = tuple(map(as_source, parts))

    def setup(self, run: Run) -> None:
        self.run = run
        for part in self.parts:
            part.setup(run)

    def check(self, dataset: Dataset | IterableDataset, name: str) -> None:
        for part in self.parts:
            part.check(dataset, name)

    def check_run(self, has_reward: bool, group_size: int) -> None:
        for part in self.parts:
            part.check_run(has_reward, group_size)

    @property
    def columns(self) -> list[str]:
        return [column for part in self.parts for column in part.columns]

    @property
    def uses_model(self) -> bool:
        return any(part.uses_model for part in self.parts)

    @property
    def observes_steps(self) -> bool:
        return any(part.observes_steps for part in self.parts)

    def observe_step(self, summary: StepSummary) -> None:
        for part in self.parts:
            part.observe_step(summary)

    @property
    def counts(self) -> dict[str, float]:
        """Sums over the parts."""
        total: Counter[str] = Counter()
        for part in self.parts:
            total.update(part.counts)
        return dict(total)

    def state_dict(self) -> dict[str, Any] | None:
        """States of the parts that keep one, by their number."""
        states = {str(i): state for i, part in enumerate(self.parts) if (state := part.state_dict()) is not None}
        return states or None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            if str(i) in state:
                part.load_state_dict(state[str(i)])


class FirstOf(Composite):
    """
    Views of the first source that has any for a rollout.

    Args:
        sources (`PrivilegedSource`): In the order in which they are asked.
    """

    def __call__(self, groups: list[Group]) -> Views:
        found: dict[int, list[View]] = {}
        for part in self.parts:
            left = restrict_to(groups, lambda rollout, _, found=found: rollout.index not in found)
            with self.raise_on_all_ranks(part):
                views = mask_unwanted(left, call(part, left))
            found.update({one.index: row for one, row in zip(rollouts_of(left), views, strict=True) if row})
        return [found.get(rollout.index, []) for rollout in rollouts_of(groups)]


class AllOf(Composite):
    """
    Views of several sources, side by side. Their names must differ; async sources wait at the same time, unless one of
    them lets the model write.

    Args:
        sources (`PrivilegedSource`): The sources.
    """

    def __call__(self, groups: list[Group]) -> Views:
        if self.uses_model:
            answers = [self._of_part(part, groups) for part in self.parts]
        else:
            answers = call_all(list(self.parts), groups)
        answers = [mask_unwanted(groups, views) for views in answers]
        return [[view for views in row for view in views] for row in zip(*answers, strict=True)]

    def _of_part(self, part: Source, groups: list[Group]) -> Views:
        with self.raise_on_all_ranks(part):
            return call(part, groups)


class When(Composite):
    """
    Source for the rollouts that meet a condition.

    Args:
        condition (`Callable[[Rollout, list[Rollout]], bool]`): Function of a rollout and its group. See
            [`trl_opsd.privileged.conditions`].
        source (`PrivilegedSource`): Source of their views.
    """

    def __init__(self, condition: Condition, source: PrivilegedSource):
        super().__init__(source)
        self.condition = condition

    def check_run(self, has_reward: bool, group_size: int) -> None:
        check_needs(self.condition, f"The condition `{source_name(self.condition)}`", has_reward, group_size)
        super().check_run(has_reward, group_size)

    def __call__(self, groups: list[Group]) -> Views:
        with self.raise_on_all_ranks():
            groups = restrict_to(groups, self.condition)
        return mask_unwanted(groups, call(self.parts[0], groups))
