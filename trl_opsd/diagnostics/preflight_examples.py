# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Examples of a pre-flight: what the teacher reads of a row, and what both sides write to it."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.prompts.teacher_prompt import marked
from trl_opsd.rollouts.rollout import Messages, Rollout, message_text
from trl_opsd.rollouts.view import View
from trl_opsd.trainer.scoring import Answers


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 3
LONGEST = 1_500  # characters of a text in the terminal
REPEATED = re.compile(r"(<[^<>\s]+>)(\1){3,}")  # placeholders of an image's patches


@dataclass(frozen=True)
class Example:
    """
    One row as the teacher reads it, and the answers of both sides.

    Args:
        source, view (`str`): Names of the view.
        teacher_prompt (`str`): What the teacher reads, control tokens and all, with the context in `[[` and `]]`.
        student_answer, teacher_answer (`str`): What they write; empty where nothing was written.
        student_score, teacher_score (`float`): Scores of the answers, `nan` without.
    """

    source: str
    view: str
    teacher_prompt: str
    student_answer: str
    teacher_answer: str
    student_score: float
    teacher_score: float

    def lines(self, number: int) -> list[str]:
        """The example for a terminal."""
        return [
            f"Row {number}, {self.source}/{self.view}. The teacher reads, with the context in [[ ]]:",
            indented(self.teacher_prompt),
            f"Student{_scored(self.student_score)}:",
            indented(self.student_answer),
            f"Teacher{_scored(self.teacher_score)}:",
            indented(self.teacher_answer),
        ]


def examples_of(
    tokenizer: "PreTrainedTokenizerBase",
    names: tuple[str, str],
    rollouts: list[Rollout],
    views: list[list[View]],
    encoded: EncodedView,
    student: Answers,
    teacher: Answers,
) -> list[Example]:
    """
    One example of each prompt of a batch whose first rollout has the view.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): From ids to what is read.
        names (`tuple[str, str]`): Source and view.
        rollouts (`list[Rollout]` of length B): The local rollouts.
        views (`list[list[View]]` of length B): All views of each.
        encoded ([`EncodedView`]): The view of this name.
        student, teacher ([`Answers`]): What both wrote.
    """
    found: dict[int, Example] = {}
    for row, rollout in enumerate(rollouts):
        own = next((view for view in views[row] if view.name == names[1]), None)
        if own is None or encoded.weights[row] == 0 or rollout.group in found:
            continue
        text = tokenizer.decode(encoded.prompt_ids[row], skip_special_tokens=False)
        found[rollout.group] = Example(
            *names, marked(text, own), answer_text(student.completions[row]), answer_text(teacher.completions[row]),
            student.scores[row], teacher.scores[row],
        )  # fmt: skip
    return list(found.values())


def answer_text(completion: str | Messages) -> str:
    """A completion as text; each message of one with several begins with its role."""
    if isinstance(completion, str):
        return completion
    if len(completion) == 1:
        return message_text(completion[0])
    return "\n".join(f"{message['role']}: {_with_calls(message)}" for message in completion)


def _with_calls(message: dict) -> str:
    calls = [str(call.get("function", call)) for call in message.get("tool_calls") or ()]
    return " ".join([message_text(message), *calls]).strip()


def indented(text: str) -> str:
    """A text between bars, its middle left out where it is long."""
    text = REPEATED.sub(lambda match: f"{match[1]} x {len(match[0]) // len(match[1])}", text.strip())
    if len(text) > LONGEST:
        half = LONGEST // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half:,} characters ...]\n{text[-half:]}"
    return "\n".join(f"  | {line}" for line in text.splitlines() or ["(nothing)"])


def _scored(score: float) -> str:
    return "" if math.isnan(score) else f", score {score:g}"
