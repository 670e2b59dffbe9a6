# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The simplest source: a dataset column."""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset

from trl_opsd.config import PLACEHOLDER
from trl_opsd.privileged.prompts import check_context, teacher_prompt
from trl_opsd.rollouts import Messages, Rollout, View


@dataclass(frozen=True)
class DatasetColumn:
    """
    One view for each row whose column is not `None`.

    Args:
        column (`str`): Column with a string, chat messages, or `None`.
        template (`str`): Text around a string context.
        place (`str`): Where a string context goes.
        teach_bare_rows (`bool`): Whether a row without context gets the student's own prompt as its view. This is plain
            on-policy distillation, for a teacher with other weights.
    """

    column: str = "privileged_context"
    template: str = PLACEHOLDER
    place: str = "after_user"
    teach_bare_rows: bool = False

    def __call__(self, rollouts: list[Rollout]) -> list[list[View]]:
        return [self._views(rollout) for rollout in rollouts]

    def _views(self, rollout: Rollout) -> list[View]:
        if self.column not in rollout.row and not self.teach_bare_rows:
            raise ValueError(self._missing("A training row", list(rollout.row)))
        context = rollout.row.get(self.column)
        if context is None:
            return [View(rollout.prompt)] if self.teach_bare_rows else []
        where = f"The column `{self.column}` of the row with prompt {repr(rollout.prompt)[:80]}"
        return [View(self._prompt(rollout.prompt, context, where), context=context)]

    def _prompt(self, prompt: str | Messages, context: Any, where: str) -> str | Messages:
        check_context(context, where)
        try:
            return teacher_prompt(prompt, context, self.template, self.place)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def check(self, dataset: Dataset | IterableDataset, name: str) -> None:
        """
        Look through a data set before training. An iterable one is checked as it streams.

        Args:
            dataset (`Dataset` or `IterableDataset`): Rows with the column.
            name (`str`): What to call the data set in an error, for example `"train_dataset"`.

        Raises:
            ValueError: If the column is missing or a row holds what can't be a context.
        """
        if dataset.column_names is not None and self.column not in dataset.column_names:
            if self.teach_bare_rows:
                return
            raise ValueError(self._missing(f"`{name}`", dataset.column_names))
        if isinstance(dataset, Dataset):
            # An environment may own the prompts; it then completes the rows when it is reset
            bare = [{"role": "user", "content": ""}]
            prompts = dataset["prompt"] if "prompt" in dataset.column_names else [bare] * len(dataset)
            for number, (prompt, context) in enumerate(zip(prompts, dataset[self.column], strict=True)):
                if context is not None:
                    self._prompt(prompt, context, f"Row {number} of `{name}`: column `{self.column}`")

    def _missing(self, what: str, columns: list[str]) -> str:
        return (
            f"{what} has no column `{self.column}` for the teacher to read; it has {columns}. Add the column (None for "
            "rows without privileged context), name another with `privileged_column`, pass `privileged=` a source, or "
            "set `distillation_weight=0.0`."
        )
