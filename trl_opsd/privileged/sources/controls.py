# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Control contexts, which should not help, or less: a gain with them does not come from the true context (OP2SD,
2608.09228; What Does PI Add, 2609.20612; contrast with wrong hints: RLCSD, 2606.11709).
"""

from dataclasses import dataclass, replace
from typing import Annotated

from trl_opsd.options import Count, OneOf
from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import Run, TextSource, rollout_rng
from trl_opsd.privileged.checks import check_scored, column_of
from trl_opsd.privileged.rows import OtherRowSource, row_text
from trl_opsd.privileged.transcripts import shown
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.text import normalised
from trl_opsd.rollouts.view import PLACEHOLDER, View, Views


@dataclass
class OtherRow(OtherRowSource):
    """
    Context of another row, drawn anew for each rollout; never one of the same prompt, in whatever spelling. It may say
    what the row's own says, as answers of yes and no do.

    Args:
        column (`str`): Column with the contexts.
        with_problem (`bool`): Whether the other row's problem is shown too: a worked example of another problem, which
            keeps much of a context's gain (OP2SD).
        count (`int`): Views, of different prompts. With more than one they are named `NAME-1`, `NAME-2`, ...
        seed (`int`): Of the draw.
    """

    column: str = "privileged_context"
    with_problem: bool = False
    count: Count = 1
    seed: int = 0

    NAME = "other_row"

    def setup(self, run: Run) -> None:
        super().setup(run)
        prompts = self.rows.prompts
        if self.count >= prompts:
            raise ValueError(f"`count={self.count}` needs more prompts than the {prompts} of `train_dataset`.")
        if self.with_problem and not all(isinstance(context, str) for context in self.rows.contexts):
            raise ValueError(f"`with_problem` needs texts in the column `{self.column}`, and it holds messages.")

    def __call__(self, groups: list[Group]) -> Views:
        return [self._views(rollout) if rollout.wanted else [] for rollout in rollouts_of(groups)]

    def _views(self, rollout: Rollout) -> list[View]:
        rng = rollout_rng(rollout, self.seed, "other_row")
        seen, views = {normalised(row_text(rollout))}, []
        while len(views) < self.count:
            row = rng.randrange(len(self.rows.texts))
            if self.rows.keys[row] in seen:
                continue
            seen.add(self.rows.keys[row])
            context = self.rows.contexts[row]
            text = f"{self.rows.texts[row]}\n\n{context}" if self.with_problem else context
            name = self.name if self.count == 1 else f"{self.name}-{len(views) + 1}"
            views.append(self.view(text, name=name))
        return views


@dataclass
class Shuffled(TextSource):
    """
    Words of the row's own context in another order, drawn for each rollout: its topic without its statement. A context
    of which every order is the same, such as a single word, gives no view.

    Args:
        column (`str`): Column with a text or `None`.
        seed (`int`): Of the order.
    """

    column: str = "privileged_context"
    seed: int = 0

    NAME = "shuffled"
    COLUMN_FIELDS = ("column",)

    def __call__(self, groups: list[Group]) -> Views:
        return [self._views(rollout) for rollout in rollouts_of(groups)]

    def _views(self, rollout: Rollout) -> list[View]:
        context = column_of(rollout, self.column, "column")
        if context is None:
            return []
        if not isinstance(context, str):
            raise ValueError(f"Shuffled needs a text in the column `{self.column}`, got {context!r}, {rollout.where}.")
        own, rng = context.split(), rollout_rng(rollout, self.seed, "shuffled")
        if len(set(own)) < 2:
            return []
        words = list(own)
        while words == own:
            rng.shuffle(words)
        return [self.view(" ".join(words))]


@dataclass
class Empty(TextSource):
    """Template around an empty context: a gain with it comes from the template's own words. Without any, the teacher
    reads the student's prompt, and a teacher of the same weights teaches nothing."""

    NAME = "empty"

    def __call__(self, groups: list[Group]) -> Views:
        view = without_context(self.view(""))
        return [[view] for _ in rollouts_of(groups)]


def without_context(view: View) -> View:
    """View with the words of its template around nothing; one of the student's own prompt where there are no words, as
    around messages."""
    words = view.template.replace(PLACEHOLDER, "").strip() if isinstance(view.context, str) else ""
    if not words:
        return replace(view, context=None, template=PLACEHOLDER, place="after_user", position=None, role=None)
    # White space at the template's ends says how it joins the prompt
    return replace(view, context=words, template=view.template.replace(view.template.strip(), PLACEHOLDER))


@dataclass
class WrongDemonstration(TextSource):
    """
    Wrong answers to the same problem, for contrast: of failed rollouts of the group, or from a column.

    Args:
        column (`str`, *optional*): Column with a wrong answer. `None` means failed rollouts of the group, other than
            the one that is taught.
        choice (`str`): Which failed rollouts: `"random"`, or the `"shortest"` or `"longest"` first, in tokens (the
            longest: SSOPD, 2605.17497).
        count (`int`): Most views. With more than one allowed they are named `NAME-1`, `NAME-2`, ...
        keep_thinking (`bool`): Whether thought blocks of a rollout are shown.
        seed (`int`): Of the draw among failed rollouts.
    """

    column: str | None = None
    choice: Annotated[str, OneOf(("random", "shortest", "longest"))] = "random"
    count: Count = 1
    keep_thinking: bool = False
    seed: int = 0

    NAME = "wrong_demonstration"
    COLUMN_FIELDS = ("column",)

    @property
    def needs_reward(self) -> bool:
        return self.column is None

    @property
    def needs_groups(self) -> bool:
        return self.column is None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.column is not None and self.count > 1:
            raise ValueError(f"`count` must be 1 with a `column`, which holds one text, got {self.count}.")

    def __call__(self, groups: list[Group]) -> Views:
        return [self._views(rollout, group) for group in groups for rollout in group]

    def _views(self, rollout: Rollout, group: Group) -> list[View]:
        if self.column is not None:
            wrong = column_of(rollout, self.column, "column")
            return [] if wrong is None else [self.view(wrong)]
        check_scored(rollout, "The source `wrong_demonstration` without a column")
        others = [one for one in group if one.index != rollout.index and one.total == one.total and not one.success]
        rollout_rng(rollout, self.seed, "wrong").shuffle(others)
        if self.choice != "random":
            others.sort(key=lambda one: len(one.completion_ids), reverse=self.choice == "longest")
        chosen = others[: self.count]
        texts = [text for one in chosen if (text := shown(one, thinking=self.keep_thinking, tools=True)).strip()]
        names = [self.name] if self.count == 1 else [f"{self.name}-{i + 1}" for i in range(len(texts))]
        return [self.view(text, name=name) for text, name in zip(texts, names, strict=False)]
