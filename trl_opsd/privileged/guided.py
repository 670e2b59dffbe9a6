# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Guided rollouts: sampled with the privileged context in view, trained under the bare prompt."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from trl_opsd.options import Share, check_fields
from trl_opsd.prompts.teacher_prompt import teacher_prompt
from trl_opsd.rollouts.rollout import Messages


@dataclass
class GuidedRollouts:
    """
    `rollout_func` for contexts of a column: a share of the rollouts of a training batch is sampled from the teacher's
    prompt, by the student's weights; evaluations are not guided (EDGE-OPD, huggingface.co/papers/2605.23493).

    Place and template are those of `privileged_place` and `privileged_template`. Rows with one prompt share the context
    of the first. Each generation batch is drawn anew, the same again in a resumed run and with any number of processes.

    Args:
        share (`float`): Probability of a rollout to be guided, if its row has a context.
        seed (`int`): Of the draw.

    Raises:
        ValueError: When called, if the training data streams.
    """

    share: Share = 0.5
    seed: int = 0
    _known: tuple[Any, dict[str, Any]] = field(default=(None, {}), init=False, repr=False)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, prompts: list[str | Messages], trainer: Any) -> dict[str, Any]:
        bare = trainer._tokenize_prompts(prompts)[0]
        if trainer.model.training:
            contexts = self._contexts(trainer)
            # Micro-batches so far tell apart generation batches of one optimizer step, also in a resumed run
            first, done = trainer.accelerator.process_index * len(prompts), trainer._step
            draws = [random.Random(f"{self.seed} {done} {first + i}").random() for i in range(len(prompts))]
            prompts = [
                self._guided(prompt, contexts, trainer.args) if draw < self.share else prompt
                for prompt, draw in zip(prompts, draws, strict=True)
            ]
        ids, images, fields = trainer._tokenize_prompts(prompts)
        # Each prompt is its own: those of a group are guided or not
        completions, logps = trainer._generate_single_turn(ids, images, fields, 1)
        return {"prompt_ids": bare, "completion_ids": completions, "logprobs": logps}

    def _guided(self, prompt: str | Messages, contexts: dict[str, Any], args: Any) -> str | Messages:
        context = contexts.get(_key(prompt))
        if context is None:
            return prompt
        return teacher_prompt(prompt, context, args.privileged_template, args.privileged_place)

    def _contexts(self, trainer: Any) -> dict[str, Any]:
        """Contexts by prompt, of the trainer's present training data."""
        data, column = trainer.train_dataset, trainer.args.privileged_column
        if not isinstance(data, Dataset):
            raise ValueError(
                "Guided rollouts look a prompt's context up in `train_dataset`, which must be a `Dataset` for that, "
                f"got {type(data).__name__}. Load the data without streaming."
            )
        if self._known[0] is not data:
            rows = zip(data["prompt"], data[column], strict=True)
            self._known = data, {_key(prompt): context for prompt, context in reversed(list(rows))}
        return self._known[1]


def _key(prompt: str | Messages) -> str:
    return json.dumps(prompt, sort_keys=True, default=repr)


guided_rollouts = GuidedRollouts()
