# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Self-written contexts: an author turns the privileged information into a hint, which the teacher reads instead."""

import re
from dataclasses import KW_ONLY, dataclass
from typing import Any

from datasets import Dataset, IterableDataset

from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.authors.endpoint import EndpointAuthor
from trl_opsd.privileged.authors.written_source import Author, WrittenSource, task_text
from trl_opsd.privileged.checks import check_context, column_of
from trl_opsd.privileged.rows import data_rows
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.view import PLACEHOLDER, Views


TASK = "{task}"
INSTRUCTION = (
    "You read a problem and its solution. Write a hint in a few sentences for somebody who has to solve it: what the "
    "problem asks for, the idea of the solution, and what to watch out for. Do not give the result away."
)


@dataclass
class Written(WrittenSource):
    """
    Hint or analysis that an author writes with the privileged information in view, and that the teacher reads instead
    of it. By default the teacher itself is the author.

    One text is written for the rollouts of a prompt. A row whose column is `None` has no view; nor has one about which
    nothing was written (counted in `written_empty`).

    Args:
        column (`str`): Column with the privileged information, a text.
        per_rollout (`bool`): Whether each rollout of a prompt is given a text of its own.
        request (`str`): What the author reads after the instruction: text with the placeholder `{privileged_context}`
            and, if wanted, `{task}`.

    Raises:
        ValueError: If the request lacks its placeholder, or the texts of a prompt would all be the same.
    """

    column: str = "privileged_context"
    per_rollout: bool = False
    _: KW_ONLY
    request: str = "Problem:\n{task}\n\nSolution:\n{privileged_context}"
    author: Author | dict[str, dict[str, Any]] = "teacher"
    instruction: str = INSTRUCTION
    template: str = "A hint:\n\n{privileged_context}"

    NAME = "written"
    COLUMN_FIELDS = ("column",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if PLACEHOLDER not in self.request:
            raise ValueError(f"`request` must contain the placeholder {PLACEHOLDER}, got {self.request!r}.")
        if self.per_rollout and self.temperature == 0 and not callable(self.author):
            raise ValueError("`per_rollout` needs a `temperature` above 0: all texts of a prompt would be the same.")
        if self.per_rollout and isinstance(self.author, EndpointAuthor) and self.author.cache_dir is not None:
            raise ValueError(
                "`per_rollout` asks for several texts of a prompt, and `cache_dir` keeps one: leave one out."
            )
        self.counts |= dict.fromkeys(("written_asked", "written_empty"), 0)

    def check(self, dataset: Dataset | IterableDataset, name: str) -> None:
        """Check that the column is there and holds texts. Rows of an iterable dataset are checked when they are
        asked for."""
        super().check(dataset, name)
        if isinstance(dataset, Dataset):
            for number, (context,) in enumerate(data_rows(dataset, [self.column], name)):
                self._check(context, f"Row {number} of `{name}`: column `{self.column}`")

    def __call__(self, groups: list[Group]) -> Views:
        self.counts = dict.fromkeys(self.counts, 0)
        representatives = {rollout.index: self._representative(rollout, group) for group in groups for rollout in group}
        rollouts = rollouts_of(groups)
        asked = [one for one in rollouts if one.wanted and representatives[one.index] == one.index]
        with self.raise_on_all_ranks():
            requests = [self._request(rollout) for rollout in asked]
        pairs = [pair for pair in zip(asked, requests, strict=True) if pair[1] is not None]
        self.counts["written_asked"] = len(pairs)
        answers = self.ask([request for _, request in pairs], [one for one, _ in pairs], once=not self.per_rollout)
        self.counts["written_empty"] = sum(text is not None and not text.strip() for text in answers)
        texts = {
            one.index: text.strip() for (one, _), text in zip(pairs, answers, strict=True) if text and text.strip()
        }
        found = [texts.get(representatives[one.index]) if one.wanted else None for one in rollouts]
        return [[] if text is None else [self.view(text)] for text in found]

    def _representative(self, rollout: Rollout, group: Group) -> int:
        """Index of the rollout about which the text is asked for: the first of its prompt on this process."""
        if self.per_rollout:
            return rollout.index
        return next((one.index for one in group if one.wanted), rollout.index)

    def _request(self, rollout: Rollout) -> str | None:
        context = column_of(rollout, self.column, "column")
        self._check(context, f"The column `{self.column}` of {rollout.where}")
        if context is None:
            return None
        parts = {TASK: task_text(rollout), PLACEHOLDER: context}
        # In one go: the task may speak of placeholders itself
        return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found.group()], self.request)

    def _check(self, context: Any, where: str) -> None:
        if context is None:
            return
        if not isinstance(context, str):
            raise ValueError(f"{where} must be text for the author to read, or None; got {context!r}.")
        check_context(context, where)
