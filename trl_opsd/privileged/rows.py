# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Rows of a data set: read through before training, and as contexts of other rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from datasets.utils import tqdm

from trl_opsd.privileged.base import Run, TextSource
from trl_opsd.privileged.checks import check_column, source_name
from trl_opsd.rollouts.rollout import Messages, Rollout, message_text
from trl_opsd.rollouts.text import normalised


_BATCH = 200  # rows decoded at once: one by one they take twenty times as long, all at once may hold many images


def data_rows(dataset: Dataset, columns: list[str], name: str) -> Iterator[tuple[Any, ...]]:
    """
    Values of columns of a data set, row by row, with a progress bar where it takes more than a second.

    Args:
        dataset (`Dataset`): Data set to read through.
        columns (`list[str]`): Columns to read; of the others nothing is decoded.
        name (`str`): How the bar names the data set.
    """
    if dataset.format["type"] != "custom":  # whose function may need other columns
        dataset = dataset.select_columns(list(dict.fromkeys(columns)))
    hidden = not PartialState().is_local_main_process
    with tqdm(total=len(dataset), desc=f"Reading `{name}`", unit=" rows", delay=1.0, disable=hidden) as bar:
        for start in range(0, len(dataset), _BATCH):
            batch = dataset[start : start + _BATCH]
            yield from zip(*(batch[column] for column in columns), strict=True)
            bar.update(min(_BATCH, len(dataset) - start))


def prompt_text(prompt: str | Messages) -> str:
    """Text of the user messages in a prompt."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message_text(message) for message in prompt if message["role"] == "user")


def row_text(rollout: Rollout) -> str:
    """Text of the user messages in the prompt of a rollout's row, without what an environment has added to it."""
    return prompt_text(rollout.row.get("prompt", rollout.prompt))


class OtherRows:
    """
    Contexts of the training data, the prompt texts of their rows and the keys of these: two rows whose user messages
    differ in spelling alone have one key.

    Args:
        dataset (`Dataset`): Training data.
        column (`str`): Column with the contexts. Rows where it is `None` are left out.
        source (`Any`): Source that reads them, for an error.

    Raises:
        ValueError: If the data streams, or too few rows hold a context.
    """

    def __init__(self, dataset: Dataset | IterableDataset | None, column: str, source: Any):
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"The privileged source {source_name(source)} shows other rows of `train_dataset`, which must be a "
                f"`Dataset` for that, got {type(dataset).__name__}. Load the data without streaming."
            )
        check_column(column, dataset, "train_dataset", "column")
        self.contexts, self.texts, self.keys = [], [], []
        for prompt, context in data_rows(dataset, ["prompt", column], "train_dataset"):
            if context is not None:
                self.contexts.append(context)
                self.texts.append(prompt_text(prompt))
                self.keys.append(normalised(self.texts[-1]))
        self.prompts = len(set(self.keys))
        if self.prompts < 2:
            raise ValueError(
                f"The privileged source {source_name(source)} needs rows of at least two prompts with a context in the "
                f"column `{column}` of `train_dataset`, and there are {self.prompts}. Prompts are told apart by the "
                "text of their user messages, in whatever spelling."
            )


@dataclass
class OtherRowSource(TextSource):
    """
    Base of the sources that show a rollout another row of `train_dataset`.

    Args:
        column (`str`): Column with the contexts.
    """

    column: str = "privileged_context"

    COLUMN_FIELDS = ("column",)

    def check(self, dataset: Dataset | IterableDataset, name: str) -> None:
        if name == "train_dataset":  # the other rows come from there alone
            super().check(dataset, name)

    def setup(self, run: Run) -> None:
        self.rows = OtherRows(run.train_dataset, self.column, self)
