# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Pseudo-references: the answer that most rollouts of a group agree on."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from trl_opsd.options import OneOf, PositiveShare
from trl_opsd.privileged.base import TextSource
from trl_opsd.privileged.transcripts import shown, without_thinking
from trl_opsd.privileged.votes import NUMBER, answer_reader, majority, same_answer
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.view import View, Views


SHOW = ("answer", "shortest", "longest_other")


@dataclass
class PseudoReference(TextSource):
    """
    Majority answer of the group, without a label or a verifier (U-OPSD, 2608.06296).

    An answer is read from each rollout, without its thought blocks; one without an answer has no vote. Spellings of an
    answer, such as 1,000 and 1000, are one. Two answers with as many votes are no majority, and neither is one with too
    few, or with a single one: the group then has no views, and a prompt with a single rollout never has.

    Args:
        answer (`str` or `Callable[[str], str | None]`): How an answer is read from a rollout's text: a regular
            expression, whose last match counts (its first group, if it has one), or a function, in a recipe by its
            dotted path after `function:`. The default takes the last number.
        least_share (`float`): Share of the group's rollouts that must give the answer.
        show (`str`): What the teacher reads: `"answer"` the answer alone, `"shortest"` the shortest rollout that gives
            it (SSOPD, 2605.17497), `"longest_other"` the longest one that gives another answer, as a wrong example for
            contrast; a group of one mind then has no views. A rollout is never shown itself.
        keep_thinking (`bool`): Whether thought blocks of a shown rollout are kept.
    """

    answer: str | Callable[[str], str | None] = NUMBER
    least_share: PositiveShare = 0.5
    show: Annotated[str, OneOf(SHOW)] = "answer"
    keep_thinking: bool = False
    _: KW_ONLY
    template: str = "The answer is probably this:\n\n{privileged_context}\n\nCheck it as you answer."

    NAME = "pseudo_reference"
    needs_groups = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._read = answer_reader(self.answer)

    def __call__(self, groups: list[Group]) -> Views:
        return [views for group in groups for views in self._of_group(group)]

    def _of_group(self, group: Group) -> Views:
        answers = [self._read(without_thinking(rollout.text)) for rollout in group]
        winner = majority(answers, self.least_share)
        if winner is None:
            return [[] for _ in group]
        if self.show == "answer":
            return [[self.view(winner)] for _ in group]
        same = self.show == "shortest"
        shown_ones = [
            one
            for one, answer in zip(group, answers, strict=True)
            if answer is not None and answer.strip() and same_answer(answer, winner) == same
        ]
        shown_ones.sort(key=lambda one: len(one.completion_ids), reverse=not same)
        return [self._of_other(rollout, shown_ones) for rollout in group]

    def _of_other(self, rollout: Rollout, ordered: list[Rollout]) -> list[View]:
        chosen = next((one for one in ordered if one.index != rollout.index), None)
        text = "" if chosen is None else shown(chosen, thinking=self.keep_thinking, tools=True)
        return [self.view(text)] if text.strip() else []
