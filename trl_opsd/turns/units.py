# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Units of turns: the texts that were sampled for one repetition of the slots, dealt to its rows by their roles."""

from dataclasses import dataclass, field, replace
from typing import Any

from trl_opsd.prompts.length_limit import EncodedReading
from trl_opsd.prompts.teacher_prompt import whole_prompt
from trl_opsd.rollouts.rollout import Messages, Rollout
from trl_opsd.rollouts.view import View
from trl_opsd.turns.options import WRITTEN


# Roles whose reward TRL compares within a group; that of the others stays on the rollout, or is none
SCORED = ("first", "second", "distil")
_UNSCORED = ("feedback", "idle")


@dataclass(frozen=True)
class Text:
    """
    Text of a row.

    Args:
        ids (`list[int]`): Its token ids, with the token that ends it.
        logps (`list[float]`, *optional*): Log-probabilities that the sampler gave them.
    """

    ids: list[int]
    logps: list[float] | None = None


@dataclass(frozen=True)
class Row:
    """
    Row of a unit in its role.

    Args:
        role (`str`): The role.
        prompt (`str` or `list[dict]`): Prompt that it is trained under.
        prompt_ids (`list[int]`): Its token ids.
        text ([`Text`]): What is trained. Its log-probabilities are those under this very prompt, or `None`.
        attempt ([`Rollout`], *optional*): First turn of the unit, `None` for a text that was sampled in its place.
        view ([`View`], *optional*): View under which the later turn is read.
    """

    role: str
    prompt: str | Messages
    prompt_ids: list[int]
    text: Text
    attempt: Rollout | None
    view: View | None

    def dressed(self, rollout: Rollout) -> Rollout:
        """The captured rollout of this row, with what the turns know of it."""
        known: dict[str, Any] = {"role": self.role, "attempt": self.attempt, "turn_view": self.view}
        if self.role in _UNSCORED:
            known |= {"rewards": dict.fromkeys(rollout.rewards, float("nan")), "total": float("nan"), "success": False}
        if self.role == "idle":
            known["wanted"] = False
        return replace(rollout, prompt=self.prompt, **known)


@dataclass
class Unit:
    """
    One repetition of the slots.

    Args:
        slots (`list[str]`): Their roles.
        otherwise (`str`): Role of the later slots of a unit that does not go on.
        attempt ([`Rollout`]): First turn, without tokens where none is sampled.
        first ([`Text`], *optional*): Its text.
        context ([`EncodedReading`], *optional*): What the second turn reads, `None` in a unit that does not go on.
        second ([`Text`], *optional*): The second turn.
        fresh (`list[Text]`): Further first turns, for slots that do not go on.
        given ([`Text`], *optional*): Text of the column `given`.
        feedback (`tuple`, *optional*): Prompt, its ids, and the text of the role `feedback`.
        end (`int`): Token that ends a text.
    """

    slots: list[str]
    otherwise: str
    attempt: Rollout
    first: Text | None = None
    context: EncodedReading | None = None
    second: Text | None = None
    fresh: list[Text] = field(default_factory=list)
    given: Text | None = None
    feedback: tuple[str | Messages, list[int], Text] | None = None
    end: int = 0

    @property
    def goes_on(self) -> bool:
        return self.context is not None

    @property
    def context_prompt(self) -> str | Messages:
        """Prompt of the second turn; the bare one where its context stands between tokens."""
        whole = whole_prompt(self.context.view, self.attempt.prompt)
        return self.attempt.prompt if whole is None else whole

    @property
    def second_wanted(self) -> bool:
        """Whether a second turn has to be written."""
        return self.goes_on and bool(set(self.slots) & set(WRITTEN))

    @property
    def fresh_wanted(self) -> int:
        """Further first turns that are needed."""
        return 0 if self.goes_on or self.otherwise == "idle" else self.most_fresh

    @property
    def most_fresh(self) -> int:
        """Further first turns that a unit like this may need: one for both roles of the second turn, which share it."""
        own = [role for role in self.slots if role in ("feedback", "reread")]
        return len(own) + bool(set(self.slots) & set(WRITTEN))

    def rows(self) -> list[Row]:
        """The rows, in the order of the slots."""
        left = list(self.fresh)
        return [self._row(role, left) for role in self.slots]

    def _row(self, role: str, left: list[Text]) -> Row:
        bare = self.attempt.prompt, self.attempt.prompt_ids
        view = self.context.view if self.goes_on else None
        if role == "first":
            return Row(role, *bare, self.first, self.attempt, view)
        if role == "given":
            known = self.given is not None
            return Row(role if known else "idle", *bare, self.given if known else self._idle_text(), self.attempt, view)
        if not self.goes_on:
            shares = role == "distil" and "second" in self.slots  # the text of that slot
            if left and not shares:
                return Row("first", *bare, left.pop(0), None, None)
            return Row("idle", *bare, self._idle_text(), self.attempt, None)
        if role == "feedback":
            return Row(role, *self.feedback, self.attempt, view)
        text = self.first if role == "reread" else self.second
        if role == "distil":
            return Row(role, *bare, Text(text.ids), self.attempt, view)
        sampled_here = text if role == "second" else Text(text.ids)
        return Row(role, self.context_prompt, self.context.ids, sampled_here, self.attempt, view)

    def _idle_text(self) -> Text:
        known = [text for text in (self.first, *self.fresh) if text is not None]
        return Text(known[0].ids if known else [self.end])
