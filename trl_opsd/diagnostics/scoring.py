# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Scores of what the student has written, and of what the teacher writes with its context in view."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from trl_opsd.encoding import EncodedView
from trl_opsd.restarts import RestartableTrainer, raised_everywhere
from trl_opsd.rollouts import Messages, Rollout, total_reward
from trl_opsd.writing import Writer


if TYPE_CHECKING:
    from trl_opsd.trainer import OPSDTrainer

Score = Callable[[list[str] | list[Messages], list[dict[str, Any]]], list[float]]


class Scorer:
    """
    Every method is a collective.

    Args:
        trainer ([`OPSDTrainer`]): Whose rewards, tools and teacher.
        score (`Callable`, *optional*): From completions and their rows to floats, instead of the rewards.
        note (`Callable[[str], None]`): Told what is measured otherwise than in training.
    """

    def __init__(self, trainer: "OPSDTrainer", score: Score | None, note: Callable[[str], None]):
        self.trainer, self.score, self.note, self.accelerator = trainer, score, note, trainer.accelerator
        self.scores = score is not None or trainer._has_reward
        self.writer = Writer(trainer, trainer.teacher.answering)

    def students(self, rollouts: list[Rollout]) -> list[float]:
        if self.score is None:
            return [rollout.total for rollout in rollouts]
        return self._scores(rollouts, [rollout.completion for rollout in rollouts], [])

    def _scores(self, rollouts: list[Rollout], completions: list, completion_ids: list[list[int]]) -> list[float]:
        trainer, rows = self.trainer, [rollout.row for rollout in rollouts]
        if self.score is None:
            prompts = [rollout.prompt for rollout in rollouts]
            # Of the parent: OPSD's own would take these for rollouts of the student
            rewards = RestartableTrainer._calculate_rewards(trainer, rows, prompts, completions, completion_ids)
            trainer._pending_extra_logs.clear()  # the next batch of the student would take them for its own
            trainer._pending_metrics.clear()
            first = self.accelerator.process_index * len(rows)
            weights = trainer.reward_weights.tolist()
            return [total_reward(values, weights) for values in rewards[first : first + len(rows)].tolist()]
        with raised_everywhere(self.accelerator, "the `score` of the pre-flight", trainer.state.global_step):
            scores = [float(value) for value in self.score(completions, rows)]
            if len(scores) != len(rows):
                raise ValueError(f"`score` returned {len(scores)} values for {len(rows)} completions.")
        return scores

    def teachers(self, rollouts: list[Rollout], view: EncodedView) -> list[float]:
        """Scores of what the teacher writes itself; `nan` where it can't be told."""
        trainer = self.trainer
        within = any(gather_object([any(view.starts)]))
        if within and trainer.tools:
            self.note("a teacher whose hint stands within a trajectory with tools is not scored: what happened before "
                       "can't be played again.")  # fmt: skip
        if not self.scores or (within and trainer.tools):
            return [math.nan] * len(rollouts)
        if trainer.rollout_func is not None:
            self.note("the teacher answers in one go, as `rollout_func` knows nothing of its prompt.")
        if trainer.environments is not None:
            self.note("environments are reset with their row for the teacher: one that starts at random starts anew.")
            for environment, rollout in zip(trainer.environments, rollouts, strict=True):
                left_out = {"environment"} if trainer._multi_environment else set()
                environment.reset(**{name: value for name, value in rollout.row.items() if name not in left_out})
        ids, completions = self._teacher_rollouts(rollouts, view)
        return self._scores(rollouts, completions, ids)

    def _teacher_rollouts(self, rollouts: list[Rollout], view: EncodedView) -> tuple[list[list[int]], list]:
        """TRL's own generation, with the teacher's prompts and weights, so that its tools are called."""
        begun = [rollout.completion_ids[:start] for rollout, start in zip(rollouts, view.starts, strict=True)]
        limit = self.trainer.max_completion_length

        def answer(prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
            answers = self.writer.answers(prompt_ids)
            if any(begun):  # then there is one call, as there are no tools
                answers = [(own + ids)[:limit] for own, ids in zip(begun, answers, strict=True)]
            return answers, None

        parts = {
            "_tokenize_prompts": lambda prompts: (view.prompt_ids, None, {}),
            "_generate_single_turn": answer,
            "rollout_func": None,
        }
        with _replaced(self.trainer, parts):
            _, ids, _, completions, *_ = self.trainer._generate([rollout.prompt for rollout in rollouts])
        return ids, completions


@contextmanager
def _replaced(trainer: "OPSDTrainer", parts: dict[str, Any]) -> Iterator[None]:
    """Other methods and attributes on this trainer, for just this block."""
    before = {name: vars(trainer)[name] for name in parts if name in vars(trainer)}
    vars(trainer).update(parts)
    try:
        yield
    finally:
        for name in parts:
            del vars(trainer)[name]
        vars(trainer).update(before)
