# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Verifier feedback as contexts: test output, a compiler's message, a judge's words."""

from dataclasses import KW_ONLY, dataclass

from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import TextSource
from trl_opsd.privileged.checks import check_scored
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.view import View, Views


@dataclass
class VerifierFeedback(TextSource):
    """
    Feedback that a reward function gave with TRL's `log_extra(column, texts)`, or that a `rollout_func` added to the
    row (SDPO, 2601.20802). `None` and text of white space give no view.

    Args:
        key (`str`): The column.
        skip_successes (`bool`): Whether successful rollouts have no view.

    Raises:
        ValueError: When asked, if neither a reward function nor the row has the column, or it holds what is no text.
    """

    key: str = "feedback"
    skip_successes: bool = False
    _: KW_ONLY
    template: str = (
        "An earlier attempt at this got the following feedback:\n\n{privileged_context}\n\nAnswer with it in mind."
    )

    NAME = "feedback"

    @property
    def needs_reward(self) -> bool:
        return self.skip_successes

    def __call__(self, groups: list[Group]) -> Views:
        return [self._views(rollout) for rollout in rollouts_of(groups)]

    def _views(self, rollout: Rollout) -> list[View]:
        if self.skip_successes:
            check_scored(rollout, "The source `feedback` with `skip_successes`")
        if not rollout.wanted or (self.skip_successes and rollout.success):
            return []
        known = rollout.row | rollout.extra
        if self.key not in known:
            raise ValueError(
                f"No reward function wrote `{self.key}` with `log_extra`, and the row has no such column, for "
                f"{rollout.where}; there are {sorted(map(str, known))}. Name the column with `key`, and let the reward "
                f"function call `log_extra({self.key!r}, texts)` with one text (or None) for each completion."
            )
        text = known[self.key]
        if text is not None and not isinstance(text, str):
            raise ValueError(f"The feedback `{self.key}` must be text or None, got {text!r} for {rollout.where}.")
        return [self.view(text)] if text and text.strip() else []
