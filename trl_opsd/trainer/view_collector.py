# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""View collection: the privileged source is asked for views of rollouts, which are then encoded."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.monitoring.leaks import LEAK_PHRASES, Leak, Phrases, find_leaks
from trl_opsd.monitoring.metrics import Sums, generation_metrics
from trl_opsd.monitoring.names import PREFIX
from trl_opsd.privileged import Asker, DatasetColumn, Run, Source, as_source, build_source
from trl_opsd.privileged.checks import source_name
from trl_opsd.prompts.tokenizer import Tools
from trl_opsd.prompts.view_encoder import ViewEncoder
from trl_opsd.rollouts.capture import whole_groups
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.view import PrivilegedSource, View
from trl_opsd.teacher import TEACHER_KINDS
from trl_opsd.token_report.token_log import Known


# Folders and files that begin so are not pushed to the Hub with the model or a checkpoint
NOT_PUSHED = "_"
# Counted by the collector itself, and not by a source
_AMOUNTS = ("incomplete_rollouts",)


def source_of(args: OPSDConfig, given: PrivilegedSource | None) -> Source:
    """The source that the trainer was given, or that the config describes."""
    if given is not None and args.privileged_source is not None:
        raise ValueError("`privileged=` and `privileged_source` are both set: leave out one of them.")
    if given is not None:
        return as_source(given)
    if args.privileged_source is not None:
        return as_source(build_source(args.privileged_source))
    return DatasetColumn(
        args.privileged_column,
        teach_bare_rows=TEACHER_KINDS[args.teacher_model_kind].teaches_bare_rows,
        template=args.privileged_template,
        place=args.privileged_place,
    )


@dataclass(frozen=True)
class CollectedViews:
    """
    The rollouts of a generation batch on this process, and what was collected for them.

    Args:
        rollouts (`list[Rollout]` of length B): In the order of the batch.
        views (`list[list[View]]` of length B): Views of each.
        leaks (`list[Leak]` of length B): What each gives away of its views.
        group_success_rates (`list[float]` of length B): Share of its group's rollouts that had success.
        counts (`dict[str, float]`): What the source counted, by name.
        skipped (`int`): Rollouts without views because of an error of the source.
        groups (`list[Group]`): Whole groups of the rollouts, with those that other processes hold.
    """

    rollouts: list[Rollout]
    views: list[list[View]]
    leaks: list[Leak]
    group_success_rates: list[float]
    counts: dict[str, float]
    skipped: int
    groups: list[Group]

    @property
    def mode(self) -> str:
        return "train" if self.rollouts[0].training else "eval"

    def first(self, rows: int) -> "CollectedViews":
        """The same with the views of the first rows alone."""
        if rows >= len(self.views):
            return self
        return replace(self, views=[views if row < rows else [] for row, views in enumerate(self.views)])

    def without_policy(self, encoded: dict[str, EncodedView]) -> list[bool]:
        """Whether a view of each rollout, one that was not dropped for its length, takes the advantage's place."""
        rows = enumerate(self.views)
        return [any(not view.policy and encoded[view.name].weights[row] > 0 for view in views) for row, views in rows]

    def known(self) -> dict[int, Known]:
        """Rollout, views and leak of each row, by its index in the generation batch."""
        of_rows = zip(self.rollouts, self.views, self.leaks, strict=True)
        return {rollout.index: (rollout, views, leak.shown) for rollout, views, leak in of_rows}


class ViewCollector:
    """
    Asks a privileged source for the views of rollouts, and encodes them.

    Args:
        args ([`OPSDConfig`]): Options.
        source ([`~trl_opsd.privileged.Source`]): Where views come from.
        encoder ([`ViewEncoder`]): From views to ids.
        accelerator (`Accelerator`): Tells of errors, and completes groups.
        required (`tuple[str]`, *optional*): Views that a rollout must have, by name or as `NAME-1` and so on. One that
            lacks any has no views at all.
        check_views (`Callable[[list[str]], None]`, *optional*): Raises an error where no teacher reads views of these
            names.
    """

    def __init__(
        self,
        args: OPSDConfig,
        source: Source,
        encoder: ViewEncoder,
        accelerator: Accelerator,
        required: tuple[str, ...] = (),
        check_views: Callable[[list[str]], None] = lambda names: None,
    ):
        self.args, self.source, self.encoder, self.accelerator = args, source, encoder, accelerator
        self.required, self.check_views = required, check_views
        self.asker = Asker(source, args.privileged_on_error, args.privileged_timeout)
        self._written: set[Path] = set()
        self._phrases = Phrases(LEAK_PHRASES if args.leak_phrases is None else args.leak_phrases)

    def setup(self, run: Run) -> None:
        """Give the source what it may need, before training."""
        self.run = run
        if self.args.privileged_timeout is not None and self.source.uses_model:
            raise ValueError(
                "`privileged_timeout` can't stop a source that lets the model write: the other processes would wait. "
                "Leave the option out; such a source takes `max_new_tokens`."
            )
        self.source.setup(run)

    def collect(self, capture: Callable[[], list[Rollout]], group_size: int, step: int) -> CollectedViews:
        """
        Ask for the views of the local rollouts of a generation batch. A collective.

        Args:
            capture (`Callable[[], list[Rollout]]`): Gives the local rollouts, in order.
            group_size (`int`): Rollouts of one prompt.
            step (`int`): Optimizer steps that are done.
        """
        stage = "the rewards"
        with raise_on_all_ranks(self.accelerator, stage, step, name=lambda _: stage):
            rollouts = capture()
            stage = "the privileged source"
            groups = whole_groups(rollouts, group_size, self.accelerator)
            given = iter(self.asker(groups))
            found = [next(given) if one.wanted else [] for one in rollouts]
            views = [views if self._complete([view.name for view in views]) else [] for views in found]
            rates = {group[0].group: success_rate(group) for group in groups}
            counts = self._counted()
            if self.required:
                counts["incomplete_rollouts"] = sum(map(bool, found)) - sum(map(bool, views))
            stage = "the record of the contexts"
            collected = CollectedViews(
                rollouts=rollouts,
                views=views,
                leaks=find_leaks(rollouts, _read(rollouts, views), self.args.leak_ngram_size, self._phrases),
                group_success_rates=[rates[one.group] for one in rollouts],
                counts=counts,
                skipped=self.asker.skipped,
                groups=groups,
            )
            if self.args.log_privileged_context:
                self._write_down(collected, step)
        return collected

    def _complete(self, names: list[str]) -> bool:
        """Whether the method has what it needs in views of these names."""
        return all(any(name == one or name.startswith(f"{one}-") for name in names) for one in self.required)

    def _counted(self) -> dict[str, float]:
        """Counters of the source for this batch, on this process."""
        counts = self.source.counts
        if not isinstance(counts, dict) or not all(isinstance(value, (int, float)) for value in counts.values()):
            raise ValueError(f"`counts` of {source_name(self.source)} must map names to numbers, got {counts!r}.")
        # After an error some parts of a source may still hold those of the batch before
        return dict.fromkeys(counts, 0) if self.asker.raised else dict(counts)

    def metrics(
        self, collected: CollectedViews, encoded: dict[str, EncodedView], without_policy: list[bool], rows: int
    ) -> tuple[Sums, dict[str, float]]:
        """
        Metrics of a generation batch, with the source's counts summed over the processes. A collective.

        Args:
            collected ([`CollectedViews`]): Rollouts and views.
            encoded (`dict[str, EncodedView]`): The views as encoded.
            without_policy (`list[bool]` of length B): From [`CollectedViews.without_policy`].
            rows (`int`): Rows that count, the first ones.

        Returns:
            Sums and counts, and largest values, by name in the log.
        """
        total: Counter[str] = Counter()
        own = dict(collected.counts)
        if self.required:
            lost = (not any(encoded[one.name].weights[row] for one in v) for row, v in enumerate(collected.views) if v)
            own["incomplete_rollouts"] += sum(lost)
        for counts in gather_object([own]):
            total.update(counts)
        missed = {f"{PREFIX}{name}": (total.pop(name), None) for name in _AMOUNTS if name in total}
        own = {f"{PREFIX}{name}": (value, 1.0) for name, value in total.items()}  # of a generation batch, in the mean
        ids = [rollout.completion_ids for rollout in collected.rollouts[:rows]]
        off, leaks = sum(without_policy[:rows]), collected.leaks[:rows]
        sums, largest = generation_metrics(self.accelerator, encoded, ids, collected.skipped, off, leaks)
        return sums | missed | own, largest

    def encode(self, collected: CollectedViews, tools: list[Tools]) -> dict[str, EncodedView]:
        """
        Encode the collected views, by name. A collective: every process has the same names, also those that none of its
        rows has. A row of which a view was left out that the method needs has none.

        Args:
            collected ([`CollectedViews`]): Rollouts and views.
            tools (`list` of length B): Tools of each rollout.
        """
        rollouts, views = collected.rollouts, collected.views
        given = {(view.name, view.reader) for of_row in views for view in of_row}
        everywhere = sorted(set(gather_object(list(given))))
        readers = everywhere or [("privileged", "teacher")]
        with raise_on_all_ranks(self.accelerator, "the teacher's prompts", rollouts[0].step):
            if len(dict(readers)) < len(readers):
                raise ValueError(f"Views of one name have two readers: {readers}. Give them names of their own.")
            self.check_views([name for name, reader in everywhere if reader == "teacher"])
            encoded = self.encoder.encode(readers, rollouts, views, tools)
        for row, rollout in enumerate(rollouts):
            if not self._complete([name for name, view in encoded.items() if view.weights[row] > 0]):
                for view in encoded.values():
                    view.leave_out(row, rollout.prompt_ids)
        return encoded

    def _write_down(self, collected: CollectedViews, step: int) -> None:
        folder = Path(self.args.output_dir) / f"{NOT_PUSHED}privileged"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{collected.mode}-{step:06d}-{self.accelerator.process_index}.jsonl"
        # A step may have several generation batches; what a run wrote that was resumed before this step is replaced
        with open(path, "a" if path in self._written else "w", encoding="utf-8", errors="backslashreplace") as file:
            self._written.add(path)
            rows = zip(collected.rollouts, collected.views, collected.leaks, strict=True)
            for rollout, views, leak in rows:
                shown = {name: getattr(rollout, name) for name in ("index", "group", "prompt", "completion", "rewards")}
                shown["views"] = [{k: v for k, v in asdict(view).items() if v is not None} for view in views]
                shown["leak"] = leak.shown
                file.write(json.dumps(shown, ensure_ascii=False, default=repr) + "\n")

    def state(self) -> dict[str, Any]:
        """The source's state, empty if it has none."""
        return self.source.state_dict() or {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what [`state`] returned."""
        if state:
            self.source.load_state_dict(state)


def _read(rollouts: list[Rollout], views: list[list[View]]) -> list[list[View]]:
    """Contexts that a rollout may give away: those of its views, or what a second turn was written with."""
    written = [[one.turn_view] if one.role == "distil" and one.turn_view is not None else [] for one in rollouts]
    return [own or others for own, others in zip(views, written, strict=True)]


def success_rate(group: Group) -> float:
    """Share of a group's rollouts that had success, of the first turns alone where there are some."""
    counted = [one for one in group if one.role == "first"] or group
    return sum(one.success for one in counted) / len(counted)


def check_alignment(rollouts: list[Rollout], completion_ids: torch.Tensor) -> None:
    """
    Check that the captured rollouts are the rows of TRL's batch, which the teacher scores.

    Args:
        rollouts (`list[Rollout]` of length B): As captured.
        completion_ids (`torch.Tensor` of shape `(B, C)`): Of TRL's batch.

    Raises:
        RuntimeError: If they are not.
    """
    for rollout, ids in zip(rollouts, completion_ids.tolist(), strict=True):
        if ids[: len(rollout.completion_ids)] != rollout.completion_ids:
            raise RuntimeError(
                "The completions that TRL handed to the rewards are not the rows of its batch any more. This version "
                "of trl is not supported: see the bounds in trl_opsd's pyproject.toml."
            )
