# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Answers of student and teacher beside a training, and their scores."""

import asyncio
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.batches.pixels import ImageCache, Pixels
from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.privileged.asking import in_thread
from trl_opsd.rollouts.capture import total_reward
from trl_opsd.rollouts.rollout import Messages, Rollout
from trl_opsd.trainer.rehearsal import generate_from


if TYPE_CHECKING:
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer

# As TRL's reward functions: takes `prompts`, `completions`, `completion_ids` and the columns by name
ScoreFunc = Callable[..., list[float | None]]


@dataclass(frozen=True)
class Answers:
    """
    Answers of one side, student or teacher.

    Args:
        completions (`list[str]` or `list[list[dict]]` of length B): Decoded; empty where nothing was written.
        scores (`list[float]` of length B): Score of each, `nan` without.
    """

    completions: list[str] | list[Messages]
    scores: list[float]

    @classmethod
    def none(cls, count: int) -> "Answers":
        """No answers, to so many rollouts."""
        return cls([""] * count, [math.nan] * count)


class Scorer:
    """
    Every method is a collective.

    Args:
        trainer ([`OPSDTrainer`]): Whose rewards, tools and teacher.
        score_func (`Callable`, *optional*): A function as TRL's reward functions are, instead of the rewards.
        temperature (`float`, *optional*): Of the answers that are written, 0 for the likeliest tokens. `None` means
            that of training.
        note (`Callable[[str], None]`): Told what is measured otherwise than in training.
    """

    def __init__(
        self,
        trainer: "OPSDTrainer",
        score_func: ScoreFunc | None,
        temperature: float | None = None,
        note: Callable[[str], None] = lambda text: None,
    ):
        self.trainer, self.score_func, self.temperature, self.note = trainer, score_func, temperature, note
        self.accelerator = trainer.accelerator
        self.scores = score_func is not None or trainer.has_reward

    def of_rollouts(self, rollouts: list[Rollout]) -> list[float]:
        """Scores of the rollouts themselves; `nan` without a score."""
        if self.score_func is None:
            return [rollout.total for rollout in rollouts]
        completions = [rollout.completion for rollout in rollouts]
        return self._scores(rollouts, completions, [rollout.completion_ids for rollout in rollouts])

    def students(self, rollouts: list[Rollout]) -> Answers:
        """Answers of the student, written anew to the prompt of each rollout."""
        return self._scored(rollouts, [rollout.prompt_ids for rollout in rollouts], "live")

    def continuations(self, rollouts: list[Rollout], begun: list[list[int]]) -> Answers:
        """Answers of the student that begin with these tokens; one that ends with them stays as it is."""
        own = [rollout.prompt_ids + tokens for rollout, tokens in zip(rollouts, begun, strict=True)]
        return self._scored(rollouts, own, "live", begun=begun)

    def pairs(self, rollouts: list[Rollout], view: EncodedView, bare: Answers) -> tuple[Answers, Answers]:
        """
        Answers of student and teacher for each rollout, of the one without and of the other with its view. Where a
        context stands within the completion, both go on from the tokens before it.

        Args:
            rollouts (`list[Rollout]`): The local rollouts.
            view ([`EncodedView`]): What the teacher reads of each.
            bare ([`Answers`]): From [`students`], for contexts in the prompt.
        """
        if self._beyond_replay(view):
            nothing = Answers.none(len(rollouts))
            return nothing, nothing
        teacher = self.teachers(rollouts, view)
        if not self._within(view):
            return bare, teacher
        return self.continuations(rollouts, _begun(rollouts, view)), teacher

    def teachers(self, rollouts: list[Rollout], view: EncodedView) -> Answers:
        """Answers of the teacher with a view, one for each rollout; none where it can't begin as the rollout did."""
        if self._beyond_replay(view):
            return Answers.none(len(rollouts))
        begun = _begun(rollouts, view) if self._within(view) else None
        return self._scored(rollouts, view.prompt_ids, _reader(view), view, begun)

    def written(
        self, rollouts: list[Rollout], view: EncodedView
    ) -> tuple[list[list[int]], list[list[int]] | None, list[str] | list[Messages]]:
        """
        Answers by the reader of a view, whose context stands before them, without scores: as
        [`~trl_opsd.trainer.rehearsal.generate_from`] returns them.

        Args:
            rollouts (`list[Rollout]`): The local rollouts.
            view ([`EncodedView`]): Text that is read before the answer to each.
        """
        return self._answers(rollouts, view.prompt_ids, self._pixels(rollouts, view), _reader(view))

    def _within(self, view: EncodedView) -> bool:
        """Whether any context of the view, on any process, stands within a completion."""
        return any(gather_object([any(view.starts)]))

    def _beyond_replay(self, view: EncodedView) -> bool:
        if not (self.trainer.tools and self._within(view)):
            return False
        self.note(
            "a teacher whose hint stands within a trajectory with tools is not scored: what happened before can't be "
            "played again."
        )
        return True

    def _scored(
        self,
        rollouts: list[Rollout],
        prompt_ids: list[list[int]],
        weights: str,
        view: EncodedView | None = None,
        begun: list[list[int]] | None = None,
    ) -> Answers:
        """Answers to `prompt_ids` by these weights."""
        ids, _, completions = self._answers(rollouts, prompt_ids, self._pixels(rollouts, view), weights, begun)
        if not self.scores:
            return Answers(completions, [math.nan] * len(rollouts))
        return Answers(completions, self._scores(rollouts, completions, ids))

    def _scores(self, rollouts: list[Rollout], completions: list, completion_ids: list[list[int]]) -> list[float]:
        trainer, rows = self.trainer, [rollout.row for rollout in rollouts]
        prompts = [rollout.prompt for rollout in rollouts]
        if self.score_func is None:
            rewards = trainer.rewards_of(rows, prompts, completions, completion_ids)
            first = self.accelerator.process_index * len(rows)
            weights = trainer.reward_weights.tolist()
            return [total_reward(values, weights) for values in rewards[first : first + len(rows)].tolist()]
        with raise_on_all_ranks(self.accelerator, "the score function", trainer.state.global_step):
            return self._call(rows, prompts, completions, completion_ids)

    def _call(self, rows: list[dict[str, Any]], prompts: list, completions: list, ids: list[list[int]]) -> list[float]:
        """Scores by the score function, which is given what TRL gives a reward function."""
        columns = [name for name in rows[0] if name not in ("prompt", "completion", "completion_ids")]
        given: dict[str, Any] = {name: [row[name] for row in rows] for name in columns}
        given |= {"prompts": prompts, "completions": completions, "completion_ids": ids}
        given |= {"trainer_state": self.trainer.state, "log_extra": _unlogged, "log_metric": _unlogged}
        if self.trainer.environments is not None:
            given["environments"] = self.trainer.environments
        values = self.score_func(**given)
        if inspect.isawaitable(values):
            coroutine = _awaited(values)
            values = in_thread(lambda: asyncio.run(coroutine), None)  # a notebook has a loop of its own
        scores = [math.nan if value is None else float(value) for value in values]
        if len(scores) != len(rows):
            name = getattr(self.score_func, "__name__", repr(self.score_func))
            raise ValueError(f"the score function `{name}` returned {len(scores)} values for {len(rows)} completions.")
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
    ) -> tuple[list[list[int]], list[list[int]] | None, list]:
        """
        TRL's own generation with other prompts and weights, so that its tools are called: token ids, masks of them and
        messages.

        Args:
            rollouts (`list[Rollout]`): Whose rows and environments.
            prompt_ids (`list[list[int]]`): What is read.
            pixels (`list[dict[str, torch.Tensor]]`): What is seen, nothing for a model that does not see.
            weights (`str`): Who writes, see [`~trl_opsd.trainer.text_generator.TextGenerator`].
            begun (`list[list[int]]`, *optional*): What of each completion is there already.
        """
        trainer = self.trainer
        if trainer.rollout_func is not None and trainer.turns is None:
            self.note("answers are written in one go where `rollout_func` can't be told what to read.")
        if trainer.environments is not None:
            self.note("environments are reset with their row for each answer: one that starts at random starts anew.")

        def write(ids: list[list[int]]) -> list[list[int]]:
            written = trainer.text_generator.answers(ids, weights, self.temperature, pixels)
            if begun is not None:  # then this is the one call, as there are no tools
                limit, ends = trainer.max_completion_length, trainer.eos_token_ids
                pairs = zip(begun, written, strict=True)
                written = [own if own and own[-1] in ends else (own + new)[:limit] for own, new in pairs]
            return written

        rows, prompts = [rollout.row for rollout in rollouts], [rollout.prompt for rollout in rollouts]
        return generate_from(trainer, rows, prompts, prompt_ids, write)


def _reader(view: EncodedView) -> str:
    """Weights that read a view, as [`~trl_opsd.trainer.text_generator.TextGenerator`] names them."""
    return "live" if view.live else "teacher"


def _begun(rollouts: list[Rollout], view: EncodedView) -> list[list[int]]:
    """Tokens of each completion that stand before the view's context."""
    return [rollout.completion_ids[:start] for rollout, start in zip(rollouts, view.starts, strict=True)]


def _unlogged(*args: Any, **kwargs: Any) -> None:
    """Takes the place of TRL's `log_extra` and `log_metric`, which would mix answers with rollouts."""


async def _awaited(values: Any) -> Any:
    return await values
