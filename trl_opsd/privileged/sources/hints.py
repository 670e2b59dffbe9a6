# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Hints within a trajectory, just before the turn or the token where a mistake begins."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from trl_opsd.options import Count, OneOf, check_fields
from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import Run, TextSource
from trl_opsd.privileged.imports import imported
from trl_opsd.privileged.locate import decoded, token_span
from trl_opsd.rollouts.rollout import Group, Rollout, Turn, message_text
from trl_opsd.rollouts.view import View, Views


Locator = Callable[[Rollout], list[tuple[int, str]]]


@dataclass(frozen=True)
class Rule:
    """
    Pattern of one class of mistakes, and the hint against it.

    Args:
        hint (`str`):
            Text that the teacher reads.
        on (`str`, *optional*, defaults to `"error"`):
            Where to look: `"error"` (what a tool call of the turn that failed says, without the form in which TRL's
            tool loop reports it), `"result"` (any tool result that answers the turn) or `"text"` (what the student
            wrote in the turn, with its tool calls, without special tokens).
        match (`str`, *optional*, defaults to `""`):
            A regular expression that is found there. An empty one takes every error.
    """

    hint: str
    on: Annotated[str, OneOf(("error", "result", "text"))] = "error"
    match: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.on != "error" and not self.match:
            raise ValueError(f"`match` is empty: a rule on a {self.on} needs a regular expression.")
        if not self.hint.strip():
            raise ValueError(f"`hint` must be a text with words, got {self.hint!r}.")
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"`match` is no regular expression: {error}: {self.match!r}.") from None

    @classmethod
    def of(cls, rule: "Rule | dict[str, str]", number: int) -> "Rule":
        """Build a rule from its description in a recipe."""
        if isinstance(rule, cls):
            return rule
        try:
            return cls(**rule)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Rule {number} is {rule!r}, but a rule is a mapping with `hint` and, if wanted, `on` and `match`: "
                f"{error}"
            ) from None

    def found(self, turn: Turn, text: str) -> re.Match | None:
        """First match of the rule in a turn."""
        texts = [text]
        if self.on != "text":
            texts = turn.errors if self.on == "error" else [message_text(message) for message in turn.results]
        return next((match for match in (re.search(self.match, one) for one in texts) if match), None)


@dataclass
class TurnHint(TextSource):
    """
    Short hint where a mistake begins; the student's own tokens after it are scored again, nothing is decoded (the
    targeted hints of Cursor's Composer 2.5 and of Aleph Alpha's Kolibri report; HINT-SD, 2605.17873).

    Rules or a function locate the mistakes. The hint of a turn is made of the hints of all rules that match it, in
    their order. A rollout without a mistake has no view.

    Args:
        rules (`list[dict]` or `list[Rule]`, *optional*):
            See [`Rule`].
        function (`str` or `Callable[[Rollout], list[tuple[int, str]]]`, *optional*):
            Instead of rules: a function, or its dotted path, from a rollout to pairs of a position (a turn or a token
            of the completion, as `place` says, counted from 0) and a hint. It may ask a critic.
        place (`str`, *optional*, defaults to `"before_turn"`):
            `"before_turn"`, or `"before_token"`: bare text before the token at which the match begins, so that all
            rules must be on the text.
        teach (`str`, *optional*, defaults to `"turn"`):
            Which tokens after the hint are taught: up to the end of the `"turn"`, or the whole `"suffix"` of the
            completion (tool results never are).
        max_hints (`int`, *optional*, defaults to `1`):
            Most mistakes that are hinted at, the first ones of the rollout. Each is a view of its own, with a teacher
            forward of its own; with more than one they are called `name-1`, `name-2` and so on.
        repeat (`bool`, *optional*, defaults to `True`):
            Whether a rule hints at each turn that it matches, or only at the first of them: one hint for each class of
            mistake, as in Kolibri.
    """

    rules: list[dict[str, str] | Rule] | None = None
    function: str | Locator | None = None
    place: str = "before_turn"
    teach: Annotated[str, OneOf(("turn", "suffix"))] = "turn"
    max_hints: Count = 1
    repeat: bool = True
    name: str = "hint"

    NAME = "turn_hint"
    finds_positions = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.rules) == (self.function is not None):
            raise ValueError("TurnHint needs one of `rules` (at least one) and `function`.")
        if self.place not in ("before_turn", "before_token"):
            raise ValueError(f"`place` must be 'before_turn' or 'before_token' for a hint, got {self.place!r}.")
        if not self.repeat and not self.rules:
            raise ValueError("`repeat` is about `rules`: a `function` gives each hint as often as it likes.")
        self._rules = [Rule.of(rule, number) for number, rule in enumerate(self.rules or [])]
        if self.place == "before_token" and any(rule.on != "text" for rule in self._rules):
            raise ValueError("With `place: before_token` every rule must be on the text: a result has no token.")
        self._locate: Locator = self._by_rules
        if self.function is not None:
            given = self.function
            self._locate = imported(given, "function", takes=1) if isinstance(given, str) else given

    def setup(self, run: Run) -> None:
        self._tokenizer = run.tokenizer

    def __call__(self, groups: list[Group]) -> Views:
        return [self._views(rollout) if rollout.wanted else [] for rollout in rollouts_of(groups)]

    def _views(self, rollout: Rollout) -> list[View]:
        views = []
        for number, (position, hint) in enumerate(self._located(rollout)[: self.max_hints], 1):
            view = self.view(hint, position=position, span=self._span(rollout, position))
            views.append(view if self.max_hints == 1 else self._numbered(view, number))
        return views

    def _located(self, rollout: Rollout) -> list[tuple[int, str]]:
        found = self._locate(rollout)
        if not isinstance(found, list) or not all(isinstance(one, tuple | list) and len(one) == 2 for one in found):
            raise ValueError(
                f"The `function` of TurnHint must return a list of pairs of a position and a hint, got "
                f"{repr(found)[:120]} for {rollout.where}."
            )
        return found

    def _numbered(self, view: View, number: int) -> View:
        return View(**{**vars(view), "name": f"{self.name}-{number}"})

    def _span(self, rollout: Rollout, position: int) -> tuple[int, int] | None:
        """Span of tokens to teach. `None` for the default of the view's place, also where the position is none."""
        by_turn = self.place == "before_turn"
        if by_turn == (self.teach == "turn"):
            return None
        if by_turn:
            known = 0 <= position < len(rollout.turns)
            return (rollout.turns[position].start, len(rollout.completion_ids)) if known else None
        ends = [turn.end for turn in rollout.turns if turn.start <= position < turn.end]
        return (position, ends[0]) if ends else None

    def _by_rules(self, rollout: Rollout) -> list[tuple[int, str]]:
        hints, left = [], list(self._rules)
        for number, turn in enumerate(rollout.turns):
            ids = rollout.completion_ids[turn.start : turn.end]
            text = decoded(self._tokenizer, ids) if any(rule.on == "text" for rule in self._rules) else ""
            found = [(rule, match) for rule in left if (match := rule.found(turn, text))]
            if not found:
                continue
            if not self.repeat:
                left = [rule for rule in left if rule not in [one for one, _ in found]]
            position = number
            if self.place == "before_token":
                first = min(match.start() for _, match in found)
                # A match of nothing at the end stands before what ends the turn
                at = token_span(self._tokenizer, ids, first, first + 1)[0] if first < len(text) else len(ids) - 1
                position = turn.start + at
            hints.append((position, "\n".join(dict.fromkeys(rule.hint for rule, _ in found))))
        return hints
