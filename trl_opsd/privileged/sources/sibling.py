# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Successful rollouts of the same prompt as contexts of the others."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from trl_opsd.options import OneOf
from trl_opsd.privileged.base import TextSource, rollout_rng
from trl_opsd.privileged.checks import check_scored
from trl_opsd.privileged.transcripts import shown
from trl_opsd.rollouts.rollout import Group, Rollout, reaches
from trl_opsd.rollouts.view import View, Views


# From the successes of a group to the key that the chosen one has the least of
CHOICES: dict[str, Callable[[Rollout], float]] = {
    "first": lambda rollout: rollout.index,
    "shortest": lambda rollout: len(rollout.completion_ids),
    "longest": lambda rollout: -len(rollout.completion_ids),
    "best": lambda rollout: -rollout.total,
}


@dataclass
class SiblingSuccess(TextSource):
    """
    Text of a successful rollout of the group (SDPO, 2601.20802; the shortest one: SSOPD, 2605.17497). A group
    without success has no views.

    Args:
        choice (`str`): Which success: `"first"`, `"shortest"`, `"longest"` (in tokens), `"best"` (the highest total),
            all of which take the first of equals, or `"random"`.
        exclude_own (`bool`): Whether a success is no context for itself: the only success of a group then has no view,
            as in SDPO.
        skip_successes (`bool`): Whether successful rollouts have no view at all.
        threshold (`float`, *optional*): Total reward from which a rollout is a success here. `None` means
            `success_reward_threshold`.
        keep_thinking (`bool`): Whether thought blocks (`<think>` or `[THINK]`) and parsed reasoning are shown.
        keep_tools (`bool`): Whether tool calls and their results are shown.
        seed (`int`): Of `"random"`.

    Raises:
        ValueError: For an unknown choice; when asked, in a run without rewards.
    """

    choice: Annotated[str, OneOf((*CHOICES, "random"))] = "first"
    exclude_own: bool = True
    skip_successes: bool = False
    threshold: float | None = None
    keep_thinking: bool = False
    keep_tools: bool = True
    seed: int = 0
    _: KW_ONLY
    template: str = "A correct answer to this question:\n\n{privileged_context}\n\nNow answer it in your own way."

    NAME = "sibling"
    needs_reward = True

    @property
    def needs_groups(self) -> bool:
        return self.exclude_own

    def __call__(self, groups: list[Group]) -> Views:
        return [views for group in groups for views in self._of_group(group)]

    def _of_group(self, group: Group) -> Views:
        check_scored(group[0], "The source `sibling`")
        successes = [one for one in group if self._succeeded(one)]
        return [self._views(rollout, successes) for rollout in group]

    def _succeeded(self, rollout: Rollout) -> bool:
        return rollout.success if self.threshold is None else reaches(rollout.total, self.threshold)

    def _views(self, rollout: Rollout, successes: list[Rollout]) -> list[View]:
        own = self._succeeded(rollout)
        if own and self.skip_successes:
            return []
        if self.exclude_own:
            successes = [one for one in successes if one.index != rollout.index]
        if not successes:
            return []
        if self.choice == "random":
            chosen = rollout_rng(rollout, self.seed, "sibling").choice(successes)
        else:
            chosen = min(successes, key=CHOICES[self.choice])
        text = shown(chosen, thinking=self.keep_thinking, tools=self.keep_tools)
        return [self.view(text)] if text.strip() else []
