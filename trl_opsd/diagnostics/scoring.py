# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Scores of what the student has written, and of what the teacher writes with its context in view."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.batches.pixels import ImageCache, Pixels
from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.rollouts.capture import total_reward
from trl_opsd.rollouts.rollout import Messages, Rollout
from trl_opsd.trainer.rehearsal import generate_from


if TYPE_CHECKING:
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer

Score = Callable[[list[str] | list[Messages], list[dict[str, Any]]], list[float]]


class Scorer:
    """
    Every method is a collective.

    Args:
        trainer ([`OPSDTrainer`]): Whose rewards, tools and teacher.
        score (`Callable`, *optional*): From completions and their rows to floats, instead of the rewards.
        temperature (`float`, *optional*): Of the answers that are scored, 0 for the likeliest tokens. `None` means that
            of training, so that the student's rollouts are scored themselves.
        note (`Callable[[str], None]`): Told what is measured otherwise than in training.
    """

    def __init__(
        self, trainer: "OPSDTrainer", score: Score | None, temperature: float | None, note: Callable[[str], None]
    ):
        self.trainer, self.score, self.temperature, self.note = trainer, score, temperature, note
        self.accelerator = trainer.accelerator
        self.scores = score is not None or trainer.has_reward

    def students(self, rollouts: list[Rollout]) -> list[float]:
        """Scores of the rollouts, or of what the student writes instead of them at another temperature."""
        if self.scores and self.temperature is not None:
            ids, completions = self._answers(
                rollouts, [rollout.prompt_ids for rollout in rollouts], self._pixels(rollouts), "live"
            )
            return self._scores(rollouts, completions, ids)
        if self.score is None:
            return [rollout.total for rollout in rollouts]
        return self._scores(rollouts, [rollout.completion for rollout in rollouts], [])

    def _scores(self, rollouts: list[Rollout], completions: list, completion_ids: list[list[int]]) -> list[float]:
        trainer, rows = self.trainer, [rollout.row for rollout in rollouts]
        if self.score is None:
            prompts = [rollout.prompt for rollout in rollouts]
            rewards = trainer.rewards_of(rows, prompts, completions, completion_ids)
            first = self.accelerator.process_index * len(rows)
            weights = trainer.reward_weights.tolist()
            return [total_reward(values, weights) for values in rewards[first : first + len(rows)].tolist()]
        with raise_on_all_ranks(self.accelerator, "the `score` of the pre-flight", trainer.state.global_step):
            scores = [float(value) for value in self.score(completions, rows)]
            if len(scores) != len(rows):
                raise ValueError(f"`score` returned {len(scores)} values for {len(rows)} completions.")
        return scores

    def teachers(self, rollouts: list[Rollout], view: EncodedView) -> list[float]:
        """Scores of what the teacher writes itself; `nan` where it can't be told."""
        trainer = self.trainer
        within = any(gather_object([any(view.starts)]))
        if within and trainer.tools:
            self.note(
                "a teacher whose hint stands within a trajectory with tools is not scored: what happened before can't "
                "be played again."
            )
        if not self.scores or (within and trainer.tools):
            return [math.nan] * len(rollouts)
        begun = [rollout.completion_ids[:start] for rollout, start in zip(rollouts, view.starts, strict=True)]
        ids, completions = self._answers(
            rollouts, view.prompt_ids, self._pixels(rollouts, view), "teacher", begun if within else None
        )
        return self._scores(rollouts, completions, ids)

    def _pixels(self, rollouts: list[Rollout], view: EncodedView | None = None) -> list[Pixels]:
        """Images that the student, or the teacher, reads of each rollout."""
        if self.trainer.images is None:
            return []
        own = [None] * len(rollouts) if view is None else view.pixels
        tokenizer, cache = self.trainer.collector.encoder.tokenizer, ImageCache()
        return [
            tokenizer.encode(rollout.prompt, None, {}, cache=cache)[1].pixels if pixels is None else pixels
            for rollout, pixels in zip(rollouts, own, strict=True)
        ]

    def _answers(
        self,
        rollouts: list[Rollout],
        prompt_ids: list[list[int]],
        pixels: list[Pixels],
        weights: str,
        begun: list[list[int]] | None = None,
    ) -> tuple[list[list[int]], list]:
        """
        TRL's own generation with other prompts and weights, so that its tools are called: token ids and messages.

        Args:
            rollouts (`list[Rollout]`): Whose rows and environments.
            prompt_ids (`list[list[int]]`): What is read.
            pixels (`list[dict[str, torch.Tensor]]`): What is seen, nothing for a model that does not see.
            weights (`str`): Who writes, see [`~trl_opsd.trainer.text_generator.TextGenerator`].
            begun (`list[list[int]]`, *optional*): What of each completion is there already.
        """
        trainer = self.trainer
        if trainer.rollout_func is not None:
            self.note("answers are written in one go where `rollout_func` can't be told what to read.")
        if trainer.environments is not None:
            self.note("environments are reset with their row for each answer: one that starts at random starts anew.")

        def write(ids: list[list[int]]) -> list[list[int]]:
            written = trainer.text_generator.answers(ids, weights, self.temperature, pixels)
            if begun is not None:  # then this is the one call, as there are no tools
                limit = trainer.max_completion_length
                written = [(own + new)[:limit] for own, new in zip(begun, written, strict=True)]
            return written

        return generate_from(trainer, rollouts, prompt_ids, write)
