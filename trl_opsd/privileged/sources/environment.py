# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Feedback of an agent's tools and environment as contexts."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any

from trl_opsd.options import OneOf
from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import TextSource
from trl_opsd.rollouts.rollout import Group, Rollout, message_text
from trl_opsd.rollouts.view import View, Views


WHAT = ("last_result", "errors", "state")


def is_tool_error(message: dict[str, Any]) -> bool:
    """Whether a tool's message reports a failure, as TRL's tool loop writes one: `{'error': ...}`."""
    return message_text(message).lstrip().startswith(("{'error':", '{"error":'))


@dataclass
class EnvironmentFeedback(TextSource):
    """
    Last observation, tool errors, or final state of a rollout's environment. A rollout without any has no view.

    Args:
        what (`str`): `"last_result"` the last tool result, `"errors"` all results that report an error, `"state"` what
            the environment says of itself at the end.
        state (`str`): Method (without arguments) or attribute of the environment for `"state"`. What it gives is shown
            as `str` shows it; `None` gives no view.
    """

    what: Annotated[str, OneOf(WHAT)] = "last_result"
    state: str = "__str__"
    _: KW_ONLY
    template: str = "What came of an earlier attempt at this:\n\n{privileged_context}"

    NAME = "environment"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state != "__str__" and self.what != "state":
            raise ValueError(f"`state` is only read with `what='state'`, but `what` is {self.what!r}.")

    def __call__(self, groups: list[Group]) -> Views:
        return [self._views(rollout) if rollout.wanted else [] for rollout in rollouts_of(groups)]

    def _views(self, rollout: Rollout) -> list[View]:
        results = [result for turn in rollout.turns for result in turn.results]
        if self.what == "state":
            text = self._state(rollout)
        elif self.what == "errors":
            text = "\n".join(message_text(result) for result in results if is_tool_error(result))
        else:
            text = message_text(results[-1]) if results else ""
        return [self.view(text)] if text.strip() else []

    def _state(self, rollout: Rollout) -> str:
        if rollout.environment is None:
            raise ValueError("`what='state'` needs an environment: pass `environment_factory` to the trainer.")
        if not hasattr(rollout.environment, self.state):
            kind = type(rollout.environment).__name__
            raise ValueError(f"The environment {kind} has no `{self.state}`, which the option `state` names.")
        value = getattr(rollout.environment, self.state)
        value = value() if callable(value) else value
        return "" if value is None else str(value)
