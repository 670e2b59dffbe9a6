# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Dataset columns as contexts: the default source."""

from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset, IterableDataset

from trl_opsd.options import near
from trl_opsd.privileged.asking import rollouts_of
from trl_opsd.privileged.base import TextSource
from trl_opsd.privileged.checks import Where, check_context
from trl_opsd.privileged.rows import data_rows
from trl_opsd.prompts.teacher_prompt import teacher_prompt
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.view import PROMPT_PLACES, View, Views


@dataclass
class DatasetColumn(TextSource):
    """
    One view for each column of a row that is not `None`.

    Args:
        column (`str` or `list[str]`): Column with a string, chat messages (whole few-shot turns), or `None`. The views
            of several columns are named after them.
        teach_bare_rows (`bool`): Whether a row without context gets the student's own prompt as its view. This is plain
            on-policy distillation, for a teacher with other weights.
        name_column (`str`, *optional*): Column with the name of each row's view, instead of `name`: with a teacher of
            several adapters, the one that reads the row.
    """

    column: str | list[str] = "privileged_context"
    teach_bare_rows: bool = False
    name_column: str | None = None

    NAME = "column"
    COLUMN_FIELDS = ("column", "name_column")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._contexts = [self.column] if isinstance(self.column, str) else list(self.column)
        if not self._contexts:
            raise ValueError("`column` is an empty list: name at least one column.")
        if self.name_column is not None and not isinstance(self.column, str):
            raise ValueError(
                "`name_column` names the one view of a row, and the views of a list in `column` are named after its "
                "columns: leave out one of them."
            )

    def __call__(self, groups: list[Group]) -> Views:
        rollouts = rollouts_of(groups)
        columns = [self._of_column(column, rollouts) for column in self._contexts]
        rows = [[view for view in row if view is not None] for row in zip(*columns, strict=True)]
        if self.teach_bare_rows:
            bare = View(name=self.name, weight=self.weight, policy=self.policy, reader=self.reader)
            rows = [row or [bare] for row in rows]
        if self.name_column is None:
            return rows
        return [
            [replace(view, name=self._checked_name(rollout.row.get(self.name_column), rollout.where)) for view in row]
            for rollout, row in zip(rollouts, rows, strict=True)
        ]

    def _checked_name(self, name: Any, where: str) -> str:
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"{where[0].upper()}{where[1:]} has {name!r} in the column `{self.name_column}`, where `name_column` "
                "needs the name of its view."
            )
        return name

    def _of_column(self, column: str, rollouts: list[Rollout]) -> list[View | None]:
        contexts = [rollout.row.get(column) for rollout in rollouts]
        for rollout, context in zip(rollouts, contexts, strict=True):
            if column not in rollout.row and not self.teach_bare_rows:
                raise ValueError(self._missing(column, "A training row", list(rollout.row)))
            if context is not None:  # the view encoder sees whether it fits a prompt that streams
                check_context(context, Where(f"The column `{column}` of ", rollout))
        return self.views(contexts, **({} if isinstance(self.column, str) else {"name": column}))

    def check(self, dataset: Dataset | IterableDataset, name: str) -> None:
        """Check that the columns are there and that their contexts fit the prompts. Rows of an iterable dataset are
        checked as they are encoded."""
        for column in self._contexts:
            self._check_column(column, dataset, name)
        if self.name_column is None:
            return
        if dataset.column_names is not None and self.name_column not in dataset.column_names:
            raise ValueError(self._missing(self.name_column, f"`{name}`", dataset.column_names))
        if isinstance(dataset, Dataset):
            for number, (value,) in enumerate(data_rows(dataset, [self.name_column], name)):
                self._checked_name(value, f"row {number} of `{name}`")

    def _check_column(self, column: str, dataset: Dataset | IterableDataset, name: str) -> None:
        if dataset.column_names is not None and column not in dataset.column_names:
            if self.teach_bare_rows:
                return
            raise ValueError(self._missing(column, f"`{name}`", dataset.column_names))
        if isinstance(dataset, Dataset):
            # An environment may own the prompts; it then completes the rows when it is reset
            bare = [{"role": "user", "content": ""}]
            own = ["prompt"] if "prompt" in dataset.column_names else []
            for number, (context, *prompts) in enumerate(data_rows(dataset, [column, *own], name)):
                prompt = prompts[0] if own else bare
                if context is None:
                    continue
                where = f"Row {number} of `{name}`: column `{column}`"
                check_context(context, where)
                try:
                    if self.place in PROMPT_PLACES:
                        teacher_prompt(prompt, context, self.template, self.place)
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from None

    def _missing(self, column: str, what: str, columns: list[str]) -> str:
        return (
            f"{what} has no column `{column}`{near(column, columns)} for the teacher to read; it has {columns}. Add "
            "the column (None for rows without privileged context), name another with `privileged_column`, name a "
            "`privileged_source` or pass `privileged=` one, or set `distillation_weight=0.0`."
        )
