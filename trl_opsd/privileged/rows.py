# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Rows of the training data for sources that show a rollout something of another row."""

from typing import Any

from datasets import Dataset, IterableDataset

from trl_opsd.privileged.base import source_name
from trl_opsd.privileged.checks import check_column
from trl_opsd.rollouts.rollout import Messages, Rollout, message_text


def prompt_text(prompt: str | Messages) -> str:
    """The user's words in a prompt."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message_text(message) for message in prompt if message["role"] == "user")


def row_text(rollout: Rollout) -> str:
    """The user's words in the prompt of a rollout's row, without what an environment has added to it."""
    return prompt_text(rollout.row.get("prompt", rollout.prompt))


class OtherRows:
    """
    The rows of the training data that hold a context, by their prompt.

    Args:
        dataset (`Dataset`): The training data.
        column (`str`): Column with the contexts. Rows where it is `None` are left out.
        source (`Any`): Who reads them, for an error.

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
        prompts, contexts = dataset["prompt"], dataset[column]
        self.contexts, self.texts = [], []
        for prompt, context in zip(prompts, contexts, strict=True):
            if context is not None:
                self.contexts.append(context)
                self.texts.append(prompt_text(prompt))
        if len(set(self.texts)) < 2:
            raise ValueError(
                f"The privileged source {source_name(source)} needs rows of at least two prompts with a context in the "
                f"column `{column}` of `train_dataset`, and there are {len(set(self.texts))}."
            )
