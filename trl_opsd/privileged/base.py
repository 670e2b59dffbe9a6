# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What sources share: options of a text's view, what a run offers them, and chance that a restart repeats."""

import importlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from trl_opsd.rollouts.rollout import Messages, Rollout
from trl_opsd.rollouts.view import PLACEHOLDER, PLACES, PLACES_WITHOUT_POSITION, READERS, View


@dataclass(frozen=True)
class Run:
    """
    What a run offers a source. A source with a method `setup(run)` is given it once, before training.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        train_dataset (`Dataset` or `IterableDataset`): Rows of the run.
        write (`Callable[..., list[str]]`): Lets the model write: see
            [`~trl_opsd.trainer.text_generator.TextGenerator`].
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
        place, template, role, weight, name, policy, chat_template_kwargs, reader: Of each view, as in [`View`].
    """

    place: str = "after_user"
    template: str = PLACEHOLDER
    role: str | None = None
    weight: float = 1.0
    name: str = "privileged"
    policy: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    reader: str = "teacher"
    finds_positions: ClassVar[bool] = False  # whether the source says before which turn or token a context stands

    def __post_init__(self) -> None:
        places = PLACES if self.finds_positions else PLACES_WITHOUT_POSITION
        if self.place not in places:
            raise ValueError(f"`place` must be one of {list(places)}, got {self.place!r}.")
        if not isinstance(self.policy, bool):
            raise ValueError(f"`policy` must be true or false, got {self.policy!r}.")
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"`name` must be text, got {self.name!r}.")
        if not isinstance(self.weight, (int, float)) or not 0 < self.weight < math.inf:
            raise ValueError(f"`weight` must be above 0 and finite, got {self.weight!r}.")
        if not isinstance(self.template, str) or PLACEHOLDER not in self.template:
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
            "policy": self.policy,
            "chat_template_kwargs": self.chat_template_kwargs,
            "reader": self.reader,
        }
        return View(context, **{**options, **changes})


def rollout_rng(rollout: Rollout, seed: int, what: str) -> random.Random:
    """
    Random numbers of one rollout: the same in a resumed run, and with any number of processes. They differ by step,
    by prompt and by place in the generation batch.

    Args:
        rollout ([`Rollout`]): Whose.
        seed (`int`): Of the source. Two of a kind draw alike unless their seeds differ.
        what (`str`): Tells apart kinds of sources.
    """
    # The prompt, as batches of an evaluation, and those of one optimizer step, share step and places
    place = f"{rollout.training} {rollout.step} {rollout.index} {rollout.prompt_ids}"
    return random.Random(f"{what} {seed} {place}")


def check_scored(rollout: Rollout, who: str) -> None:
    """
    Refuse to tell successes from failures in a run without rewards, where all would count as failed.

    Raises:
        ValueError: Naming who asked.
    """
    if not rollout.rewards:
        raise ValueError(
            f"{who} looks at rewards, and this run has none. Give a reward function (at `policy_weight: 0` it trains "
            "nothing), or choose what needs no reward."
        )


def set_up(run: Run | None, source: Any) -> Run:
    """
    The run of a source.

    Raises:
        ValueError: If it has none yet.
    """
    if run is None:
        raise ValueError(f"{source_name(source)} was not set up: what stands around it must hand on `setup(run)`.")
    return run


def together(run: Run, work: Callable[[], Any], source: Any) -> Any:
    """
    The result of what may fail on one process. If it does, every process raises before the next collective, in which
    the others would wait. A collective itself.

    Args:
        run ([`Run`]): Of the source.
        work (`Callable`): What may fail.
        source (`Any`): Whose work it is, for an error.

    Raises:
        Exception: What `work` raises; or a RuntimeError where another process failed.
    """
    result = failure = None
    try:
        result = work()
    except Exception as error:
        failure = error
    told = run.gather([None if failure is None else f"{type(failure).__name__}: {failure}"])
    if failure is not None:
        raise failure
    if any(told):
        raise RuntimeError(f"{source_name(source)} failed on another process: {next(filter(None, told))}")
    return result


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
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two of two dots in a row
        raise ValueError(f"`{where}`: {name} can't be imported: {error}") from error
