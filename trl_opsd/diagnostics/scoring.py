# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Scores of what the student writes, and of what the teacher writes with its context in view."""

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
            of training.
        note (`Callable[[str], None]`): Told what is measured otherwise than in training.
    """

    def __init__(
        self, trainer: "OPSDTrainer", score: Score | None, temperature: float | None, note: Callable[[str], None]
    ):
        self.trainer, self.score, self.temperature, self.note = trainer, score, temperature, note
        self.accelerator = trainer.accelerator
        self.scores = score is not None or trainer.has_reward

    def students(self, rollouts: list[Rollout]) -> list[float]:
        """Scores of what the student writes anew to the prompt of each rollout; `nan` without a score."""
        if not self.scores:
            return [math.nan] * len(rollouts)
        return self._scored(rollouts, [rollout.prompt_ids for rollout in rollouts], "live")

    def pairs(self, rollouts: list[Rollout], view: EncodedView, bare: list[float]) -> tuple[list[float], list[float]]:
        """
        Scores of student and teacher for each rollout, the one without and the other with its view; `nan` where they
        can't be told. Where a context stands within the completion, both go on from the tokens before it.

        Args:
            rollouts (`list[Rollout]`): The local rollouts.
            view ([`EncodedView`]): What the teacher reads of each.
            bare (`list[float]`): From [`students`], for contexts in the prompt.
        """
        within = any(gather_object([any(view.starts)]))
        if within and self.trainer.tools:
            self.note(
                "a teacher whose hint stands within a trajectory with tools is not scored: what happened before can't "
                "be played again."
            )
        if not self.scores or (within and self.trainer.tools):
            nothing = [math.nan] * len(rollouts)
            return nothing, nothing
        if not within:
            return bare, self._scored(rollouts, view.prompt_ids, "teacher", view)
        begun = [rollout.completion_ids[:start] for rollout, start in zip(rollouts, view.starts, strict=True)]
        own = [rollout.prompt_ids + tokens for rollout, tokens in zip(rollouts, begun, strict=True)]
        return (
            self._scored(rollouts, own, "live", begun=begun),
            self._scored(rollouts, view.prompt_ids, "teacher", view, begun),
        )

    def _scored(
        self,
        rollouts: list[Rollout],
        prompt_ids: list[list[int]],
        weights: str,
        view: EncodedView | None = None,
        begun: list[list[int]] | None = None,
    ) -> list[float]:
        """Scores of answers to `prompt_ids` by these weights."""
        ids, completions = self._answers(rollouts, prompt_ids, self._pixels(rollouts, view), weights, begun)
        return self._scores(rollouts, completions, ids)

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
