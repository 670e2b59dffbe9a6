# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Texts of turns that nobody samples: those of a column and of feedback, and first turns without one."""

import math
from typing import Any

from trl_opsd.privileged.authors.written_source import task_text, transcript
from trl_opsd.privileged.checks import check_encodable, text_of
from trl_opsd.prompts.view_encoder import ViewEncoder
from trl_opsd.rollouts.rollout import Messages, Rollout
from trl_opsd.rollouts.view import View
from trl_opsd.turns.units import Text


class GivenTexts:
    """
    Texts of the roles `given` and `feedback`, as token ids with the token that ends them.

    Args:
        encoder ([`ViewEncoder`]): From texts to ids.
        limit (`int`, *optional*): Most tokens that the student reads.
    """

    def __init__(self, encoder: ViewEncoder, limit: int | None):
        self.encoder, self.limit = encoder, limit
        self.tokenizer = encoder.tokenizer.tokenizer

    def given(self, attempt: Rollout, column: str) -> Text | None:
        """Text of a column, `None` where the row has none."""
        text = text_of(attempt, column, "turns.given")
        return None if text is None else self._text(text, attempt, attempt.prompt_ids, "given")

    def feedback(self, attempt: Rollout, view: View, template: str) -> tuple[str | Messages, list[int], Text]:
        """Prompt that asks for feedback on a first turn, its ids, and the context of the turn as the answer."""
        if not isinstance(view.context, str):
            raise ValueError(
                "The role `feedback` of `turns` learns to write the context, which must be a text; "
                f"that of {attempt.where} is none. Name another `turns.source`."
            )
        shown = transcript(self.tokenizer, attempt)
        request = template.replace("{question}", task_text(attempt)).replace("{attempt}", shown)
        prompt: str | Messages = f"{request}\n\n"
        if not isinstance(attempt.prompt, str):
            prompt = [{"role": "user", "content": request}]
        ids = self.encoder.tokenizer.encode(prompt, None, self.encoder.student_kwargs, shown)[0]
        return prompt, ids, self._text(view.context, attempt, ids, "feedback")

    def _text(self, text: str, attempt: Rollout, prompt_ids: list[int], role: str) -> Text:
        check_encodable(text, f"The text of the role `{role}` of {attempt.where}")
        ids = [*self.encoder.tokenizer.text(text, text), self.tokenizer.eos_token_id]
        length = len(prompt_ids) + len(ids)
        if self.limit is not None and length > self.limit:
            raise ValueError(
                f"The role `{role}` of `turns` trains {length} tokens with their prompt, and the model reads "
                f"{self.limit}, for {attempt.where}. Shorten the text."
            )
        return Text(ids)


def without_text(
    rows: list[dict[str, Any]],
    prompts: list[str | Messages],
    prompt_ids: list[list[int]],
    *,
    group_size: int,
    first: int,
    step: int,
    wanted: bool,
) -> list[Rollout]:
    """
    First turns as rollouts without completion, where none was sampled, or none is asked about.

    Args:
        rows, prompts, prompt_ids (`list` of length U): Of each unit.
        group_size (`int`): Units of a prompt.
        first (`int`): Position of the first one among the units of all processes.
        step (`int`): Optimizer steps that are done.
        wanted (`bool`): Whether the source is asked about them.
    """
    return [
        Rollout(
            row=row,
            prompt=prompt,
            completion="" if isinstance(prompt, str) else [{"role": "assistant", "content": ""}],
            prompt_ids=list(ids),
            completion_ids=[],
            turns=[],
            rewards={},
            total=math.nan,
            success=False,
            extra={},
            group=(first + i) // group_size,
            index=first + i,
            step=step,
            truncated=False,
            training=True,
            wanted=wanted,
        )
        for i, (row, prompt, ids) in enumerate(zip(rows, prompts, prompt_ids, strict=True))
    ]
