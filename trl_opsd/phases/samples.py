# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Samples of a trainer, and the layouts in which they become rows of a data set for supervised fine-tuning (SFT)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_opsd.monitoring.leaks import Leak
from trl_opsd.rollouts.rollout import Rollout


@dataclass(frozen=True)
class Sample:
    """
    One text that a run has sampled, with everything that was read before it.

    Args:
        rollout ([`Rollout`]): The text: a rollout of the student, or an answer that a context's reader wrote to it.
        read_ids (`list[int]`): Token ids that were read before the text.
        leak ([`Leak`]): What it gives away of its context.
        prompt (`int`): Number of its prompt among all that were drawn.
        view (`str`, *optional*): Name of the view that was read. `None` for a rollout of the student.
        attempt ([`Rollout`], *optional*): The student's rollout to which an answer under a view belongs.
    """

    rollout: Rollout
    read_ids: list[int]
    leak: Leak
    prompt: int
    view: str | None = None
    attempt: Rollout | None = None

    @property
    def mask(self) -> list[int]:
        """1 at the tokens of the text that the model wrote, 0 at tool results."""
        own = [0] * len(self.rollout.completion_ids)
        for turn in self.rollout.turns:
            own[turn.start : turn.end] = [1] * (turn.end - turn.start)
        return own


# Token ids and mask of the tokens that are trained
Masked = tuple[list[int], list[int]]


def answer(sample: Sample) -> Masked:
    """The student's rollout after its own prompt."""
    return _after(sample.rollout.prompt_ids, sample)


def distil(sample: Sample) -> Masked:
    """The answer that was written under the context, after the student's own prompt."""
    return _after(sample.rollout.prompt_ids, sample)


def revision(sample: Sample) -> Masked:
    """The answer that was written under the context, after all that was read."""
    return _after(sample.read_ids, sample)


def generation(sample: Sample) -> Masked:
    """Everything after the student's own prompt: context and answer as one completion."""
    ids, mask = _after(sample.read_ids, sample)
    prompt = sample.rollout.prompt_ids
    if sample.read_ids[: len(prompt)] != prompt:
        raise ValueError(
            f"The layout 'generation' trains what follows the student's own prompt, and the view {sample.view!r} "
            f"changes the prompt itself, for {sample.rollout.where}. Give the source the place 'prefill', or take the "
            "layout 'revision' or 'distil'."
        )
    mask[len(prompt) : len(sample.read_ids)] = [1] * (len(sample.read_ids) - len(prompt))
    return ids, mask


LAYOUTS: dict[str, Callable[[Sample], Masked]] = {
    "answer": answer,
    "distil": distil,
    "revision": revision,
    "generation": generation,
}


def _after(read: list[int], sample: Sample) -> Masked:
    return read + sample.rollout.completion_ids, [0] * len(read) + sample.mask


def row_of(sample: Sample, layout: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """
    Row of a sample. TRL's `SFTTrainer` takes `input_ids` and `completion_mask` as they are; the other columns are for
    readers. No value is `None`, as a column that begins with it has no type for `load_dataset`: a reward that is not
    there is `nan`, and a text that is not there is empty.

    Args:
        sample ([`Sample`]): The sample.
        layout (`str`): A name of [`LAYOUTS`].
        tokenizer (`PreTrainedTokenizerBase`): Decodes the texts.
    """
    ids, mask = LAYOUTS[layout](sample)
    first = mask.index(1)
    row = {
        "input_ids": ids,
        "completion_mask": mask,
        "prompt": tokenizer.decode(ids[:first]),
        "completion": tokenizer.decode(ids[first:]),
        "layout": layout,
        "view": sample.view or "",
        "prompt_number": sample.prompt,
        "reward": sample.rollout.total,
        "attempt_reward": math.nan if sample.attempt is None else sample.attempt.total,
        "truncated": sample.rollout.truncated,
        "leak": sample.leak.shown or "",
    }
    return row | {f"reward/{name}": value for name, value in sample.rollout.rewards.items()}
