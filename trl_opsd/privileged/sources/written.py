# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Self-written contexts: somebody who knows the privileged information first writes, and that is what is read."""

import re
from dataclasses import KW_ONLY, dataclass
from typing import Any

from datasets import Dataset, IterableDataset

from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.authors.endpoint import EndpointAuthor
from trl_opsd.privileged.authors.written_source import Author, WrittenSource, task_text
from trl_opsd.privileged.checks import check_column, check_context, column_of
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
    A hint or an analysis that is written with the privileged information in view, and that the teacher reads instead of
    it. By default the teacher itself writes.

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

    @property
    def columns(self) -> list[str]:
        return [self.column]

    def check(self, dataset: Dataset | IterableDataset, name: str) -> None:
        """
        Look through a data set before training. An iterable one is checked as it streams.

        Raises:
            ValueError: If the column is missing, or a row of it holds what is no text.
        """
        check_column(self.column, dataset, name, "column")
        if isinstance(dataset, Dataset):
            for number, context in enumerate(dataset[self.column]):
                self._check(context, f"Row {number} of `{name}`: column `{self.column}`")

    def __call__(self, groups: list[Group]) -> Views:
        self.counts = dict.fromkeys(self.counts, 0)
        asked = {rollout.index: self._speaker(rollout, group) for group in groups for rollout in group}
        rollouts = rollouts_of(groups)
        speakers = [one for one in rollouts if one.wanted and asked[one.index] == one.index]
        requests = self.together(lambda: [self._request(rollout) for rollout in speakers])
        pairs = [pair for pair in zip(speakers, requests, strict=True) if pair[1] is not None]
        self.counts["written_asked"] = len(pairs)
        told = self.ask([request for _, request in pairs], [one for one, _ in pairs], once=not self.per_rollout)
        self.counts["written_empty"] = sum(text is not None and not text.strip() for text in told)
        texts = {one.index: text.strip() for (one, _), text in zip(pairs, told, strict=True) if text and text.strip()}
        found = [texts.get(asked[one.index]) if one.wanted else None for one in rollouts]
        return [[] if text is None else [self.view(text)] for text in found]

    def _speaker(self, rollout: Rollout, group: Group) -> int:
        """Index of the rollout for which its text is written: the first of its prompt on this process."""
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
            raise ValueError(f"{where} must be text for somebody to write about, or None; got {context!r}.")
        check_context(context, where)
