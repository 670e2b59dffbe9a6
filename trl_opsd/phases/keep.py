# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Filters of samples: the conditions of privileged sources, and those that only make sense for a data set."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

from trl_opsd.options import near
from trl_opsd.phases.samples import LAYOUTS, Sample
from trl_opsd.privileged.checks import check_needs
from trl_opsd.privileged.conditions import CONDITIONS, Condition
from trl_opsd.privileged.named import Spec, build_condition
from trl_opsd.rollouts.rollout import Group


OPTION = "collect_keep"
# Conditions of a sample itself; `unique` looks at the rows that were kept before
OF_SAMPLES: dict[str, Callable[[Sample], bool]] = {
    "no_leak": lambda sample: sample.leak.shown is None,
    "not_truncated": lambda sample: not sample.rollout.truncated,
}
UNIQUE = "unique"


class Keep:
    """
    Filter of the samples of one layout: it keeps those for which all of its conditions hold.

    Args:
        specs (`Sequence[str | dict]`): Conditions by name or with arguments, as in `when`, or `no_leak`,
            `not_truncated` and `unique` (no row with the same tokens was kept before).
        layout (`str`): The layout.
        has_reward (`bool`): Whether the run has rewards.
        group_size (`int`): Rollouts of a prompt.

    Raises:
        ValueError: If there is none of a name, or one needs what the run does not have.
    """

    def __init__(self, specs: Sequence[Spec], layout: str, has_reward: bool, group_size: int):
        self.conditions: dict[str, Condition | None] = {}
        self.left_out: Counter[str] = Counter()
        self._layout, self._seen = LAYOUTS[layout], set[tuple[int, ...]]()
        for spec in specs:
            name = spec if isinstance(spec, str) else next(iter(spec), "")
            if name in OF_SAMPLES or name == UNIQUE:
                self.conditions[name] = None
                continue
            if "." not in name and name not in CONDITIONS:
                known = sorted([*OF_SAMPLES, UNIQUE, *CONDITIONS])
                raise ValueError(f"`{OPTION}`: there is no {name!r}{near(name, known)}. The names are {known}.")
            condition = build_condition(spec, OPTION)
            check_needs(condition, f"`{OPTION}`: {name}", has_reward, group_size)
            self.conditions[name] = condition
        if UNIQUE in self.conditions:  # last, as only what is kept counts
            self.conditions[UNIQUE] = self.conditions.pop(UNIQUE)

    def __call__(self, samples: Sequence[Sample]) -> list[Sample]:
        """
        Samples that are kept.

        Args:
            samples (`Sequence[Sample]`): Those of a generation batch, groups side by side.
        """
        kept = []
        for _, found in itertools.groupby(samples, key=lambda sample: sample.rollout.group):
            group = list(found)
            rollouts = [sample.rollout for sample in group]
            for sample in group:
                failed = next((name for name in self.conditions if not self._holds(name, sample, rollouts)), None)
                if failed is None:
                    kept.append(sample)
                else:
                    self.left_out[failed] += 1
        return kept

    def _holds(self, name: str, sample: Sample, group: Group) -> bool:
        if name in OF_SAMPLES:
            return OF_SAMPLES[name](sample)
        if name == UNIQUE:
            ids = tuple(self._layout(sample)[0])
            is_new = ids not in self._seen
            self._seen.add(ids)
            return is_new
        return self.conditions[name](sample.rollout, group)
