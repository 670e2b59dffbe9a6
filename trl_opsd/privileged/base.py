# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What sources share: options of a text's view, what a run offers them, and chance that a restart repeats."""

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from trl_opsd.rollouts import Messages, Rollout
from trl_opsd.views import PLACEHOLDER, READERS, View


@dataclass(frozen=True)
class Run:
    """
    What a run offers a source. A source with a method `setup(run)` is given it once, before training.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        train_dataset (`Dataset` or `IterableDataset`): Rows of the run.
        write (`Callable[..., list[str]]`): Lets the model write: see [`~trl_opsd.writing.Writer`].
        process_index, num_processes (`int`): This process among all.
        gather (`Callable[[list], list]`): A list's items of all processes. A collective: every process calls it.
    """

    tokenizer: PreTrainedTokenizerBase
    train_dataset: Dataset | IterableDataset
    write: Callable[..., list[str]]
    process_index: int = 0
    num_processes: int = 1
    gather: Callable[[list], list] = field(default=list)


@dataclass(kw_only=True)
class TextSource:
    """
    Base of the sources whose views are texts.

    Args:
        place, template, role, weight, name, chat_template_kwargs, reader: Of each view, as in [`View`].
    """

    place: str = "after_user"
    template: str = PLACEHOLDER
    role: str | None = None
    weight: float = 1.0
    name: str = "privileged"
    chat_template_kwargs: dict[str, Any] | None = None
    reader: str = "teacher"

    def __post_init__(self) -> None:
        if PLACEHOLDER not in self.template:
            raise ValueError(
                f"`template` must contain the placeholder {PLACEHOLDER}, or the teacher would never see the privileged "
                f"context; got {self.template!r}."
            )
        if self.reader not in READERS:
            raise ValueError(f"`reader` must be one of {list(READERS)}, got {self.reader!r}.")

    def view(self, context: str | Messages, **changes: Any) -> View:
        """A view of `context` with the options of this source, but for `changes`."""
        options = {
            "place": self.place,
            "template": self.template,
            "role": self.role,
            "weight": self.weight,
            "name": self.name,
            "chat_template_kwargs": self.chat_template_kwargs,
            "reader": self.reader,
        }
        return View(context, **{**options, **changes})


def chance(rollout: Rollout, seed: int, what: str) -> random.Random:
    """
    Random numbers of one rollout: the same in a resumed run, and with any number of processes.

    Args:
        rollout ([`Rollout`]): Whose.
        seed (`int`): Of the source.
        what (`str`): Tells apart two sources with one seed.
    """
    return random.Random(f"{what} {seed} {rollout.training} {rollout.step} {rollout.index}")


def source_name(source: Any) -> str:
    """How errors name a source."""
    return getattr(source, "__name__", type(source).__name__)


def imported(name: str, where: str) -> Any:
    """
    What a dotted path names.

    Raises:
        ValueError: If it can't be imported; it names the option `where`.
    """
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"`{where}`: {name} can't be imported: {error}") from error
