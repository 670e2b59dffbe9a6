# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Base classes of privileged sources, the run that they are given, and helpers that they share."""

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from trl_opsd.conflicts import check_template
from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.options import OneOf, Positive, check_fields
from trl_opsd.privileged.checks import check_column, check_needs, source_name
from trl_opsd.rollouts.rollout import Group, Messages, Rollout
from trl_opsd.rollouts.step_summary import StepSummary
from trl_opsd.rollouts.view import PLACEHOLDER, PLACES, PLACES_WITHOUT_POSITION, READERS, View, Views


@dataclass(frozen=True)
class Run:
    """
    Training run as a source sees it. [`Source.setup`] is given it once, before training.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the model.
        train_dataset (`Dataset` or `IterableDataset`): Rows of the run.
        write (`Callable[..., list[str]]`): Generates text with the model: see
            [`~trl_opsd.trainer.text_generator.TextGenerator`].
        process_index, num_processes (`int`): This process among all.
        gather (`Callable[[list], list]`): Items of a list of each process. A collective: every process calls it.
        turn_source (`Source`, *optional*): Source of the second turns, in a run with `turns`.
    """

    tokenizer: PreTrainedTokenizerBase
    train_dataset: Dataset | IterableDataset
    write: Callable[..., list[str]]
    process_index: int = 0
    num_processes: int = 1
    gather: Callable[[list], list] = field(default=list)
    turn_source: "Source | None" = None

    def raise_on_all_ranks(self, what: str) -> AbstractContextManager[None]:
        """Context for code that may fail on one process alone: if it does, every process raises at its end. A
        collective, to be put before one in which the other processes would wait. `what` names the code in the error."""
        return raise_on_all_ranks(self, what, gather=self.gather)


class Source:
    """
    Base of privileged sources: callables from groups of rollouts to the views of each rollout.

    The hooks below do nothing. A source overrides those that it needs.

    Attributes:
        NAME (`str`, *optional*): Name in recipes. Classes in the files of `trl_opsd/privileged/sources` are found by
            it.
        columns (`list[str]`): Dataset columns that it reads, which TRL then keeps.
        needs_reward, needs_groups (`bool`): Whether the source looks at rewards, and at other rollouts of the prompt.
            The trainer refuses it where there are none.
        uses_model (`bool`): Whether the source calls a collective, such as `run.write`. All processes then ask it
            equally often, and none may be late.
        observes_steps (`bool`): Whether the source wants [`observe_step`], for which statistics are gathered.
        counts (`dict[str, float]`): Numbers about the latest call, with fixed keys. Their sums over the processes are
            logged as `self_distillation/KEY`.
        run ([`Run`], *optional*): Set by [`setup`].
    """

    NAME: ClassVar[str | None] = None
    columns: list[str] = []
    needs_reward: bool = False
    needs_groups: bool = False
    uses_model: bool = False
    observes_steps: bool = False
    counts: dict[str, float] = {}
    run: Run | None = None

    def __call__(self, groups: list[Group]) -> Views | Awaitable[Views]:
        """One list of views for each rollout of `groups`, in their order."""
        raise NotImplementedError

    def setup(self, run: Run) -> None:
        """Prepare for training. Called once, on every process."""
        self.run = run

    def check(self, dataset: Dataset | IterableDataset, name: str) -> None:
        """
        Check a dataset before training.

        Args:
            dataset (`Dataset` or `IterableDataset`): Rows to check. An iterable one can't be read through.
            name (`str`): How errors name it, for example `"train_dataset"`.

        Raises:
            ValueError: If a column is missing, or a row holds what can't be a context.
        """

    def check_run(self, has_reward: bool, group_size: int) -> None:
        """
        Check before training that the run has what the source needs.

        Args:
            has_reward (`bool`): Whether rewards are given.
            group_size (`int`): Rollouts of a prompt, `num_generations`.

        Raises:
            ValueError: If there is no reward, or a prompt has one rollout alone, and the source needs more.
        """
        check_needs(self, f"The source `{self.NAME or source_name(self)}`", has_reward, group_size)

    def observe_step(self, summary: StepSummary) -> None:
        """Observe a finished optimizer step, the same on every process, if `observes_steps`."""

    def state_dict(self) -> dict[str, Any] | None:
        """State as JSON for a checkpoint. `None` where the source keeps none."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what [`state_dict`] returned."""

    def require_run(self) -> Run:
        """
        Run that [`setup`] was given.

        Raises:
            ValueError: If the source was not set up.
        """
        if self.run is None:
            raise ValueError(f"{source_name(self)} was not set up: what stands around it must hand on `setup(run)`.")
        return self.run

    def raise_on_all_ranks(self, part: Any = None) -> AbstractContextManager[None]:
        """Context as [`Run.raise_on_all_ranks`], where the source calls collectives; else a context that does nothing.
        Errors name `part`, or the source itself."""
        if not self.uses_model:
            return nullcontext()
        return self.require_run().raise_on_all_ranks(source_name(self if part is None else part))


class GivenSource(Source):
    """
    Source around a callable of the user's own: a function, an async function, or an object with some of the hooks of
    [`Source`]. Those that the object has are called.

    Args:
        given (`Callable`): From groups of rollouts to the views of each rollout.
    """

    def __init__(self, given: Callable[[list[Group]], Views | Awaitable[Views]]):
        self.given = given
        self.__name__ = source_name(given)
        for hook in ("setup", "check", "check_run", "observe_step", "state_dict", "load_state_dict"):
            setattr(self, hook, getattr(given, hook, getattr(self, hook)))

    def __call__(self, groups: list[Group]) -> Views | Awaitable[Views]:
        return self.given(groups)

    @property
    def columns(self) -> list[str]:
        return getattr(self.given, "columns", Source.columns)

    @property
    def needs_reward(self) -> bool:
        return getattr(self.given, "needs_reward", Source.needs_reward)

    @property
    def needs_groups(self) -> bool:
        return getattr(self.given, "needs_groups", Source.needs_groups)

    @property
    def uses_model(self) -> bool:
        return getattr(self.given, "uses_model", Source.uses_model)

    @property
    def observes_steps(self) -> bool:
        return getattr(self.given, "observes_steps", Source.observes_steps)

    @property
    def counts(self) -> dict[str, float]:
        return getattr(self.given, "counts", Source.counts)


def as_source(given: Callable[[list[Group]], Views | Awaitable[Views]]) -> Source:
    """Callable as a [`Source`]: itself if it is one, else wrapped as a [`GivenSource`]."""
    return given if isinstance(given, Source) else GivenSource(given)


@dataclass(kw_only=True)
class TextSource(Source):
    """
    Base of the sources whose views are texts.

    Args:
        place, template, role, weight, name, policy, chat_template_kwargs, reader: Of each view, as in [`View`].
    """

    COLUMN_FIELDS: ClassVar[tuple[str, ...]] = ()  # options that name dataset columns
    finds_positions: ClassVar[bool] = False  # whether the source says before which turn or token a context stands

    place: str = "after_user"
    template: str = PLACEHOLDER
    role: str | None = None
    weight: Positive = 1.0
    name: str = "privileged"
    policy: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    reader: Annotated[str, OneOf(READERS)] = "teacher"

    def __post_init__(self) -> None:
        check_fields(self)
        places = PLACES if self.finds_positions else PLACES_WITHOUT_POSITION
        if self.place not in places:
            raise ValueError(f"`place` must be one of {list(places)}, got {self.place!r}.")
        if not self.name:
            raise ValueError("`name` is empty: leave it out.")
        check_template("template", self.template)

    def view(self, context: str | Messages, **changes: Any) -> View:
        """View of `context` with the options of this source, but for `changes`."""
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

    def views(self, contexts: list[str | Messages | None], **changes: Any) -> list[View | None]:
        """[`view`] of each context, `None` where there is none."""
        return [None if context is None else self.view(context, **changes) for context in contexts]

    # Columns

    def column_options(self) -> list[tuple[str, str]]:
        """Pairs of an option and a column that it names."""
        values = [(option, getattr(self, option)) for option in self.COLUMN_FIELDS]
        named = [(option, [value] if isinstance(value, str) else value) for option, value in values]
        # Such an option may also be None, or a function
        return [(option, one) for option, columns in named if isinstance(columns, (list, tuple)) for one in columns]

    @cached_property  # and no property, so that a subclass may set the attribute
    def columns(self) -> list[str]:
        return [column for _, column in self.column_options()]

    def check(self, dataset: Dataset | IterableDataset, name: str) -> None:
        for option, column in self.column_options():
            check_column(column, dataset, name, option)


def rollout_rng(rollout: Rollout, seed: int, purpose: str) -> random.Random:
    """
    Random number generator of one rollout: the same in a resumed run, and with any number of processes. Generators
    differ by step, by prompt and by index in the generation batch.

    Args:
        rollout ([`Rollout`]): Rollout to draw for.
        seed (`int`): Of the source. Two of a kind draw alike unless their seeds differ.
        purpose (`str`): Tells apart kinds of sources.
    """
    # The prompt, as batches of an evaluation, and those of one optimizer step, share step and index
    key = f"{rollout.training} {rollout.step} {rollout.index} {rollout.prompt_ids}"
    return random.Random(f"{purpose} {seed} {key}")
