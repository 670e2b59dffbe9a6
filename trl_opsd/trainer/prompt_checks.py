# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Checks of the student's prompts: of whole data sets before training, of other rows as they are sampled."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset, IterableDataset

from trl_opsd.privileged.checks import check_encodable
from trl_opsd.prompts.control_tokens import strings
from trl_opsd.prompts.prompt_form import check_prompt_form
from trl_opsd.prompts.teacher_prompt import excerpt
from trl_opsd.trainer.setup_checks import named_datasets


COLUMN = "prompt"


def check_prompts(train_dataset: Any, eval_dataset: Any, optional: bool) -> bool:
    """
    Check the prompts of every row that can be looked at before training: none of a stream, and the first one alone
    where prompts hold images, or rows are transformed or in a format such as numpy.

    Args:
        train_dataset, eval_dataset (`Any`): As the trainer is given them.
        optional (`bool`): Whether the column may be missing, as where environments write the prompts.

    Returns:
        `bool`: Whether all rows were looked at.

    Raises:
        ValueError: If the column is missing, or a row's prompt is neither text nor chat messages; it names the row.
    """
    whole = True
    for name, dataset in named_datasets(train_dataset, eval_dataset).items():
        if not isinstance(dataset, (Dataset, IterableDataset)):
            continue
        columns = dataset.column_names
        if columns is not None and COLUMN not in columns and not _is_transformed(dataset):
            if optional:
                continue
            raise ValueError(f"`{name}` has no column `{COLUMN}`, which the student reads; it has {columns}.")
        if _can_be_read_through(dataset):
            for number, prompt in enumerate(_prompts(dataset)):
                check_prompt_form(prompt, f"Row {number} of `{name}`: column `{COLUMN}`")
            continue
        whole = False
        if isinstance(dataset, Dataset) and len(dataset) and (COLUMN in dataset[0] or not optional):
            form = dataset.format["type"]
            as_it_is = "" if form is None else f" (in the format {form!r}, without which `with_format(None)` reads it)"
            check_prompt_form(dataset[0].get(COLUMN), f"Row 0 of `{name}`: column `{COLUMN}`{as_it_is}")
    return whole


def check_sampled_prompts(rows: list[dict[str, Any]], optional: bool) -> None:
    """
    Check the prompts of rows that are about to be sampled.

    Args:
        rows (`list[dict]`): Rows of the local generation batch.
        optional (`bool`): As above.

    Raises:
        ValueError: As above, or if a text can't be encoded; it shows the row.
    """
    for row in rows:
        where = f"The column `{COLUMN}` of the row {excerpt(row)}"
        if COLUMN in row or not optional:
            check_prompt_form(row.get(COLUMN), where)
            for text in strings(row.get(COLUMN)):
                check_encodable(text, where)


def _is_transformed(dataset: Dataset | IterableDataset) -> bool:
    """Whether its rows are other objects than the table holds: arrays, tensors, or what a function makes of them."""
    return isinstance(dataset, Dataset) and dataset.format["type"] is not None


def _can_be_read_through(dataset: Dataset | IterableDataset) -> bool:
    """Whether its table holds the prompts as the trainer is given them, and no images, which may be many."""
    return (
        isinstance(dataset, Dataset) and not _is_transformed(dataset) and "Image(" not in str(dataset.features[COLUMN])
    )


def _prompts(dataset: Dataset) -> Iterator[Any]:
    for batch in dataset.select_columns([COLUMN]).with_format("arrow").iter(batch_size=1000):
        yield from batch[COLUMN].to_pylist()
