# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The student's own attempt as the context, with a phrase that says whether it was right."""

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from trl_opsd.options import Count
from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import TextSource
from trl_opsd.privileged.checks import check_scored
from trl_opsd.privileged.conditions import has_reward
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.view import View, Views


@dataclass
class SelfRevision(TextSource):
    """
    Own attempt of a rollout, followed by a phrase that depends on its success, at the beginning of the assistant's
    answer: the teacher goes on in the same turn, as if it were about to revise what it wrote (SD-Zero, 2604.12002).

    Attempts that were cut, have no text or reward, or hold tool calls give no view; `self_revision_skipped` counts
    them.

    Args:
        right (`str`): Phrase after an attempt that succeeded.
        wrong (`str`): Phrase after one that did not.
        max_attempt_tokens (`int`, *optional*): Most tokens of an attempt that is shown. `None` means any.

    Raises:
        ValueError: If a phrase is empty; when asked, in a run without rewards.
    """

    right: str = "This answer is right. Let me say it again in a better way."
    wrong: str = "Wait, this answer is wrong. Let me start over."
    max_attempt_tokens: Count | None = None
    _: KW_ONLY
    place: str = "prefill"
    counts: dict[str, float] = field(default_factory=lambda: {"self_revision_skipped": 0}, init=False, repr=False)

    NAME: ClassVar[str] = "self_revision"
    needs_reward: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("right", "wrong"):
            if not getattr(self, name).strip():
                raise ValueError(f"`{name}` is empty: give the phrase that follows an attempt.")

    def __call__(self, groups: list[Group]) -> Views:
        rollouts = rollouts_of(groups)
        for rollout in rollouts:
            check_scored(rollout, "The source `self_revision`")
        shown = [self._is_shown(rollout) for rollout in rollouts]
        self.counts["self_revision_skipped"] = sum(
            rollout.wanted and not is_shown for rollout, is_shown in zip(rollouts, shown, strict=True)
        )
        return [[self._view(one)] if is_shown else [] for one, is_shown in zip(rollouts, shown, strict=True)]

    def _is_shown(self, rollout: Rollout) -> bool:
        most = self.max_attempt_tokens
        too_long = most is not None and len(rollout.completion_ids) > most
        whole = len(rollout.turns) == 1 and not rollout.turns[0].message.get("tool_calls") and not rollout.truncated
        return whole and not too_long and has_reward(rollout) and bool(rollout.text.strip())

    def _view(self, rollout: Rollout) -> View:
        return self.view(f"{rollout.text}\n\n{self.right if rollout.success else self.wrong}\n\n")
