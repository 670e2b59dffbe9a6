# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Options of `turns`, and what they refuse."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

from trl_opsd.conflicts import check_names
from trl_opsd.options import Count, NonNegative, OneOf, check_fields, near
from trl_opsd.privileged.named import build_condition, build_source
from trl_opsd.rollouts.rollout import ROLES


SLOTS = tuple(role for role in ROLES if role != "idle")
WRITTEN = ("second", "distil")  # their text is a second turn
OF_CONTEXT = (*WRITTEN, "feedback", "reread")  # their prompt or their text is made of the source's context
FEEDBACK = (
    "Here is a task:\n\n{question}\n\nHere is an attempt at it:\n\n{attempt}\n\nSay what is wrong with the attempt, if "
    "anything is, and how to do it right."
)


@dataclass
class TurnOptions:
    """
    Options of `turns`: see docs/turns.md.

    Args:
        slots (`list[str]`): Roles that the rollouts of a prompt are dealt in turn. One repetition is a unit.
        source (`str` or `dict`, *optional*): Privileged source of the second turn's prompt, asked with the first turns.
        when (`str` or `dict`, *optional*): Condition on which a unit goes on. `None` means always.
        otherwise (`str`): Role of the later slots of a unit that does not: `"first"` or `"idle"`.
        attempt (`bool`): Whether a first turn is sampled.
        weights (`str`): Who writes the second turn: `"live"` or `"teacher"`.
        temperature (`float`, *optional*): Its temperature with `weights="teacher"`. `None` means that of training.
        every (`int`): Optimizer steps from one to the next in which units go on, the last of as many.
        given (`str`, *optional*): Column of the role `given`.
        feedback_template (`str`): Request of the role `feedback`, with `{attempt}` and `{question}`.

    Raises:
        ValueError: If a value is impossible, or does nothing beside the others.
    """

    slots: list[str]
    source: dict[str, Any] | str | None = None
    when: dict[str, Any] | str | None = None
    otherwise: Annotated[str, OneOf(("first", "idle"))] = "first"
    attempt: bool = True
    weights: Annotated[str, OneOf(("live", "teacher"))] = "live"
    temperature: NonNegative | None = None
    every: Count = 1
    given: str | None = None
    feedback_template: str = FEEDBACK

    def __post_init__(self) -> None:
        check_fields(self)
        _check_slots(self.slots)
        if self.source is None:
            self._check_without_source()
        else:
            build_source(self.source, "turns.source")
            if not set(self.slots) & set(OF_CONTEXT):
                raise ValueError(f"`source` is read by none of the slots {self.slots}: add one of {list(OF_CONTEXT)}.")
        condition = None if self.when is None else build_condition(self.when, "turns.when")
        if not self.attempt:
            self._check_without_attempt(condition)
        if self.weights == "teacher" and not set(self.slots) & set(WRITTEN):
            raise ValueError(
                "`weights: teacher` writes the second turn, which no slot trains: add `second` or `distil`."
            )
        if self.temperature is not None and self.weights != "teacher":
            raise ValueError("`temperature` is that of `weights: teacher`; the live weights sample as in training.")
        if (self.given is None) == ("given" in self.slots):
            raise ValueError("`given` names the column of the role `given`: set both or none.")
        if "feedback" in self.slots and "{attempt}" not in self.feedback_template:
            raise ValueError("`feedback_template` must show the {attempt} that the feedback is about.")

    def _check_without_source(self) -> None:
        needing = [role for role in self.slots if role in OF_CONTEXT]
        if needing:
            raise ValueError(f"the role `{needing[0]}` needs a `source` of contexts: name one.")
        idle = [name for name in ("when", "every", "otherwise") if getattr(self, name) != _default(name)]
        if idle:
            raise ValueError(
                f"`{idle[0]}` says when a unit goes on, which takes a `source`: name one, or leave it out."
            )

    def _check_without_attempt(self, condition: Any) -> None:
        reading = [role for role in self.slots if role in ("first", "feedback", "reread")]
        if reading:
            raise ValueError(f"the role `{reading[0]}` reads the first turn: leave `attempt: false` out.")
        if getattr(condition, "needs_reward", False):
            raise ValueError("`when` looks at the reward of the first turn: leave `attempt: false` out.")

    @property
    def size(self) -> int:
        """Rollouts of a unit."""
        return len(self.slots)


def _check_slots(slots: list[str]) -> None:
    if not slots:
        raise ValueError(f"`slots` is empty: name some of {list(SLOTS)}.")
    for role in slots:
        if role not in SLOTS:
            raise ValueError(f"`slots` names {role!r}{near(str(role), SLOTS)}: a role is one of {list(SLOTS)}.")
    if len(set(slots)) < len(slots):
        raise ValueError(f"`slots` names a role twice, and a unit has each text once: got {slots}.")


def _default(name: str) -> Any:
    return next(item.default for item in fields(TurnOptions) if item.name == name)


def turn_options(given: dict[str, Any] | None) -> TurnOptions | None:
    """
    Options of `turns` from a recipe's mapping, `None` without.

    Raises:
        ValueError: If one does not exist or fit; it names the option.
    """
    if given is None:
        return None
    if not isinstance(given, dict) or "slots" not in given:
        raise ValueError("`turns` must be a mapping with `slots`, such as {'slots': ['first', 'distil'], ...}.")
    check_names("turns", given, [item.name for item in fields(TurnOptions)], "it")
    try:
        return TurnOptions(**given)
    except ValueError as error:
        raise ValueError(f"`turns`: {error}") from error
