# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Sampling of a data set for supervised fine-tuning: rollouts of a run, or answers that are written with a privileged
context in view, filtered, with their exact token ids.
"""

import itertools
import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm

from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.diagnostics.preserve_trainer_state import preserve_trainer_state
from trl_opsd.engines import Backend
from trl_opsd.monitoring.leaks import LEAK_PHRASES, Phrases, find_leaks
from trl_opsd.options import near
from trl_opsd.phases.keep import Keep
from trl_opsd.phases.samples import LAYOUTS, Sample, row_of
from trl_opsd.privileged.named import Spec
from trl_opsd.rollouts.capture import total_reward, turns_of
from trl_opsd.rollouts.message_images import images_of
from trl_opsd.rollouts.rollout import Rollout, reaches
from trl_opsd.trainer.rehearsal import generation_batches, training_rows
from trl_opsd.trainer.scoring import Scorer
from trl_opsd.trainer.view_collector import NOT_PUSHED


if TYPE_CHECKING:
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer

ANSWER = "answer"  # the one layout of rollouts; the others are of answers under a view
FOLDER = f"{NOT_PUSHED}collected"


@dataclass
class Collection:
    """
    Rows that were collected, by layout.

    Args:
        rows (`dict[str, list[dict]]`): Rows of each layout.
        sampled (`dict[str, int]`): Samples of each layout before the filter.
        left_out (`dict[str, Counter[str]]`): Samples of each layout that the filter left out, by condition.
        prompts (`int`): Prompts that were drawn.
        without_view (`int`): Rollouts that have no view to write an answer under.
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sampled: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    prompts: int = 0
    without_view: int = 0

    def write(self, output_dir: str | Path) -> Path:
        """
        Write a file of each layout, `_collected/LAYOUT/train.jsonl`, which `load_dataset(output_dir)` finds. They hold
        contexts, so the folder's name keeps them from the Hub.

        Raises:
            ValueError: If there are such files already.
        """
        check_free(output_dir)
        folder = Path(output_dir) / FOLDER
        unfinished = folder.with_name(f"{FOLDER}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        for layout, rows in self.rows.items():
            (unfinished / layout).mkdir(parents=True)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            path = unfinished / layout / "train.jsonl"
            path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
        unfinished.rename(folder)
        return folder

    def __str__(self) -> str:
        lines = [f"{self.prompts} prompts were sampled."]
        if self.without_view:
            lines.append(f"{self.without_view} rollouts have no view, so no answer was written to them.")
        for layout, rows in self.rows.items():
            reasons = [f"{count} not {name}" for name, count in self.left_out[layout].items()]
            lengths = [len(row["input_ids"]) for row in rows]
            trained = sum(sum(row["completion_mask"]) for row in rows)
            lines.append(
                f"{layout}: {len(rows)} of {self.sampled[layout]} samples are kept"
                + (f" ({', '.join(reasons)})" if reasons else "")
                + f"; {trained} tokens are trained. The longest has {max(lengths)} tokens: let `max_length` of the SFT "
                "be at least that."
            )
        return "\n".join(lines)


def check_free(output_dir: str | Path) -> None:
    """Refuse a folder that holds collected rows: they would be mixed with the new ones."""
    folder = Path(output_dir) / FOLDER
    if folder.exists():
        raise ValueError(f"`output_dir` has rows already, in {folder}: delete that folder, or name another.")


def collect(
    trainer: "OPSDTrainer",
    rows: int | None = None,
    *,
    layouts: Sequence[str] = (ANSWER,),
    keep: Sequence[Spec] = (),
    view: str | None = None,
) -> Collection:
    """
    Sample rows for supervised fine-tuning by a trainer's own path, which is left as it was.

    The student samples as in training, with tools, environments and `rollout_func`. For the layouts other than
    `answer`, the reader of a view then writes an answer to what it reads, which is the student's prompt with the
    context; it is scored by the rewards as a rollout is.

    A collective: every process calls it, and every one has the result.

    Args:
        trainer ([`OPSDTrainer`]): In one process or several under DDP.
        rows (`int`, *optional*): Rows of the data set to draw; more than it has are several epochs. `None` means each
            once.
        layouts (`Sequence[str]`, *optional*, defaults to `("answer",)`): Rows that are made of the samples, see
            [`trl_opsd.phases.samples`].
        keep (`Sequence[str | dict]`, *optional*): Conditions of what is kept, see [`Keep`].
        view (`str`, *optional*): Name of the view that is read. `None` where the source gives one alone.

    Raises:
        ValueError: If the trainer does not distil, shards its weights or samples images; for a wrong option; if
            nothing is kept.
    """
    _check(trainer, rows, layouts)
    with preserve_trainer_state(trainer):
        collection = _Collector(trainer, layouts, keep, view).run(rows)
    _check_kept(collection, view)
    return collection


def _check_kept(collection: Collection, view: str | None) -> None:
    for layout, rows in collection.rows.items():
        sampled = collection.sampled[layout]
        if not sampled:
            named = "a view" if view is None else f"the view {view!r} (`collect_view`)"
            raise ValueError(
                f"No rollout of {collection.prompts} prompts has {named}, so no answer was written for the layout "
                f"{layout!r}: `trl-opsd preflight` shows what the source gives."
            )
        if not rows:
            reasons = ", ".join(f"{count} not `{name}`" for name, count in collection.left_out[layout].items())
            raise ValueError(
                f"Nothing is kept of {sampled} samples for the layout {layout!r}: {reasons}. Sample more rows, or "
                "loosen `collect_keep`."
            )


def _check(trainer: "OPSDTrainer", rows: int | None, layouts: Sequence[str]) -> None:
    if trainer.is_plain_grpo:
        raise ValueError("`collect` samples runs that distil: leave out `distillation_weight: 0`.")
    if Backend(trainer.accelerator).prepares_model_in_train:
        raise ValueError(
            "`collect` runs before DeepSpeed or FSDP take the model, which they do when training begins. Run it in one "
            "process or under DDP."
        )
    if rows is not None and rows < 1:
        raise ValueError(f"`collect_rows` must be at least 1, got {rows}.")
    if rows is None and not isinstance(trainer.train_dataset, Dataset):
        raise ValueError("`collect_rows` is missing: a data set that streams has no number of rows.")
    if not layouts:
        raise ValueError(f"`collect_layout` is empty: name some of {list(LAYOUTS)}.")
    for layout in layouts:
        if layout not in LAYOUTS:
            raise ValueError(
                f"`collect_layout` is {layout!r}{near(layout, LAYOUTS)}: it must be some of {', '.join(LAYOUTS)}."
            )


class _Collector:
    def __init__(self, trainer: "OPSDTrainer", layouts: Sequence[str], keep: Sequence[Spec], view: str | None):
        self.trainer, self.layouts, self.view = trainer, list(dict.fromkeys(layouts)), view
        self.scorer = Scorer(trainer, None)
        given = trainer.has_reward, trainer.num_generations
        self.keep = {layout: Keep(keep, layout, *given) for layout in self.layouts}
        phrases = trainer.args.leak_phrases
        self.phrases = Phrases(LEAK_PHRASES if phrases is None else phrases)

    def run(self, rows: int | None) -> Collection:
        trainer = self.trainer
        chosen = self._drawn(rows)
        found = Collection({layout: [] for layout in self.layouts}, prompts=len(chosen))
        size = trainer.args.generation_batch_size // trainer.num_generations
        filled = chosen + list(itertools.islice(itertools.cycle(chosen), -len(chosen) % size))
        batches = generation_batches(trainer, filled)
        shown = None if trainer.is_world_process_zero() else True  # `None`: in a terminal alone
        for number, batch in enumerate(tqdm(batches, desc="collect", disable=shown)):
            self._add(batch, number * size, found)
        found.left_out = {layout: keep.left_out for layout, keep in self.keep.items()}
        return found

    def _drawn(self, rows: int | None) -> list[dict[str, Any]]:
        """The rows to sample, in epochs, each in an order of its own."""
        dataset, seed = self.trainer.train_dataset, self.trainer.args.seed
        if not isinstance(dataset, Dataset):
            return list(itertools.islice(dataset, rows))
        rng, count = random.Random(seed), len(dataset) if rows is None else rows
        epochs = (rng.sample(range(len(dataset)), len(dataset)) for _ in itertools.count())
        return training_rows(self.trainer, list(itertools.islice(itertools.chain.from_iterable(epochs), count)))

    def _add(self, batch: list[dict[str, Any]], before: int, found: Collection) -> None:
        """Sample a generation batch and add its rows. A collective."""
        trainer = self.trainer
        trainer.sample(batch)
        pictures = [bool(images_of(rollout.prompt)) for rollout in trainer.collected.rollouts]
        if any(gather_object(pictures)):
            raise ValueError("`collect` writes token ids, without the images of these prompts: sample texts alone.")
        answers = self._wanted(self._answers(before), found)
        under_view = self._wanted(self._under_view(before), found) if set(self.layouts) - {ANSWER} else answers
        found.without_view += len(answers) - len(under_view)
        tokenizer = trainer.collector.encoder.tokenizer.tokenizer
        for layout in self.layouts:
            samples = answers if layout == ANSWER else under_view
            found.sampled[layout] += len(samples)
            found.rows[layout] += [row_of(one, layout, tokenizer) for one in self.keep[layout](samples)]

    def _wanted(self, samples: list[Sample], found: Collection) -> list[Sample]:
        """Samples of all processes, without those of rows that fill up the last batch. A collective."""
        return [one for one in gather_object(samples) if one.prompt < found.prompts]

    def _answers(self, before: int) -> list[Sample]:
        """The student's rollouts."""
        collected = self.trainer.collected
        return [
            Sample(_plain(rollout), rollout.prompt_ids, leak, before + rollout.group)
            for rollout, leak in zip(collected.rollouts, collected.leaks, strict=True)
        ]

    def _under_view(self, before: int) -> list[Sample]:
        """Answers under the view to the student's rollouts that have it. A collective."""
        trainer = self.trainer
        collected = trainer.collected
        encoded = trainer.collector.encode(collected, trainer.tools_of_rows())
        name = self._view_of(encoded)
        if name is None:
            return []
        view, has = encoded[name], [weight > 0 for weight in encoded[name].weights]
        if any(gather_object([any(view.starts)])):
            raise ValueError(
                f"The context of the view {name!r} stands within the rollouts, and `collect` samples whole answers: "
                "give the source another `place`."
            )
        written = self._written(collected.rollouts, view)
        of_view = [[one for one in views if one.name == name] for views in collected.views]
        leaks = find_leaks(written, of_view, trainer.args.leak_ngram_size, self.phrases)
        rows = zip(written, view.prompt_ids, leaks, collected.rollouts, has, strict=True)
        return [
            Sample(_plain(one), read, leak, before + one.group, name, _plain(attempt))
            for one, read, leak, attempt, has_view in rows
            if has_view
        ]

    def _view_of(self, encoded: dict[str, EncodedView]) -> str | None:
        """Name of the view to read, `None` where no rollout of the batch has any."""
        there = [name for name, view in encoded.items() if any(gather_object([any(view.weights)]))]
        if self.view is not None:
            return self.view if self.view in there else None
        if len(there) > 1:
            raise ValueError(f"The source gives the views {there}: name one of them with `collect_view`.")
        return there[0] if there else None

    def _written(self, rollouts: list[Rollout], view: EncodedView) -> list[Rollout]:
        """Answers under a view as rollouts, with their rewards. A collective."""
        trainer = self.trainer
        ids, masks, completions = self.scorer.written(rollouts, view)
        rewards = [[] for _ in rollouts]
        if trainer.has_reward:
            rows, prompts = [one.row for one in rollouts], [one.prompt for one in rollouts]
            first = trainer.accelerator.process_index * len(rollouts)
            rewards = trainer.rewards_of(rows, prompts, completions, ids)[first : first + len(rollouts)].tolist()
        ends = {*trainer.eos_token_ids, trainer._tokenizer.pad_token_id}
        written = []
        for i, rollout in enumerate(rollouts):
            total = total_reward(rewards[i], trainer.reward_weights.tolist()) if rewards[i] else float("nan")
            changes = {
                "completion": completions[i],
                "completion_ids": ids[i],
                "turns": turns_of(completions[i], ids[i], masks and masks[i]),
                "rewards": dict(zip(rollout.rewards, rewards[i], strict=True)),
                "total": total,
                "success": reaches(total, trainer.args.success_reward_threshold),
                "extra": {},
                "truncated": ids[i][-1] not in ends,
            }
            written.append(replace(rollout, **changes))
        return written


def _plain(rollout: Rollout) -> Rollout:
    """A rollout that other processes can be sent."""
    return replace(rollout, environment=None)
