# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""[`Rollout`], one sampled completion with all that is known of it before the loss, and groups of them."""

import ast
import math
from dataclasses import dataclass, field
from typing import Any


Messages = list[dict[str, Any]]

# Roles of a rollout under `turns`: which text is trained under which prompt. Without turns all are `first`
ROLES = ("first", "second", "distil", "feedback", "reread", "given", "idle")


@dataclass(frozen=True)
class Turn:
    """
    One assistant turn of a rollout, with the tool results that follow it.

    Args:
        start, end (`int`): Its tokens, `completion_ids[start:end]`.
        message (`dict`): The assistant message, with `tool_calls` where it made some.
        results (`list[dict]`): The tools' messages that answer it.
    """

    start: int
    end: int
    message: dict[str, Any]
    results: Messages = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its text, without reasoning that the tokenizer parses apart and without tool calls."""
        return message_text(self.message)

    @property
    def errors(self) -> list[str]:
        """Errors of its failing tool calls: the texts within the `{'error': ...}` with which TRL's tool loop, or a tool
        of the same habit, answers."""
        return [error for error in map(_tool_error, self.results) if error is not None]


@dataclass(frozen=True)
class Rollout:
    """
    One sampled completion with everything that is known of it before the loss.

    Args:
        row (`dict[str, Any]`):
            The dataset row.
        prompt (`str` or `list[dict]`):
            What the student read: text, or chat messages with an environment's observation already appended.
        completion (`str` or `list[dict]`):
            What the student wrote, decoded, with tool calls and their results.
        prompt_ids, completion_ids (`list[int]`):
            Their token ids, without padding.
        turns (`list[Turn]`):
            The completion's turns: one, and one more after each round of tool calls.
        rewards (`dict[str, float]`):
            Reward by function name, `nan` where a function gave none. Empty without rewards.
        total (`float`):
            Sum of the rewards by their weights, `nan` without any.
        success (`bool`):
            Whether `total` reaches `success_reward_threshold`.
        extra (`dict[str, Any]`):
            What reward functions wrote with TRL's `log_extra`, by column: a verifier's words, a compiler's output.
        group (`int`):
            Number of its prompt in the global generation batch: rollouts of one prompt share it.
        index (`int`):
            Position in the global generation batch.
        step (`int`):
            Optimizer step at which it was sampled.
        truncated (`bool`):
            Whether it ended for want of length.
        training (`bool`):
            Whether it is trained on, and not one of an evaluation.
        wanted (`bool`):
            Whether views are asked for. They are not for a rollout that is only there to complete its group (another
            process holds it), nor where a condition left it out. Views that are given all the same are dropped, so only
            a source that costs something needs to look.
        environment (`Any`):
            The environment that it was sampled in, in its final state. `None` without one, and where another process
            holds the rollout.
        role (`str`):
            Its role under `turns`, one of `ROLES`: `"first"` without them. `prompt` and `prompt_ids` are then what it
            is trained under.
        attempt ([`Rollout`], *optional*):
            First turn of its unit under `turns`; without tokens where none was sampled. It is `wanted` where the
            source of the turns was asked about it.
        turn_view ([`View`], *optional*):
            View under which its unit's later turn is read, `None` where the unit has none.
    """

    row: dict[str, Any]
    prompt: str | Messages
    completion: str | Messages
    prompt_ids: list[int]
    completion_ids: list[int]
    turns: list[Turn]
    rewards: dict[str, float]
    total: float
    success: bool
    extra: dict[str, Any]
    group: int
    index: int
    step: int
    truncated: bool
    training: bool
    wanted: bool = True
    environment: Any = field(default=None, repr=False, compare=False)
    role: str = "first"
    attempt: "Rollout | None" = field(default=None, repr=False, compare=False)
    turn_view: Any = field(default=None, repr=False, compare=False)

    @property
    def text(self) -> str:
        """Text of the student's turns, without tool calls and results."""
        return "\n".join(turn.text for turn in self.turns)

    @property
    def where(self) -> str:
        """Name of the rollout in error messages."""
        return named_by_prompt(self.prompt)


Group = list[Rollout]


def named_by_prompt(prompt: str | Messages) -> str:
    """Row in an error, by its prompt."""
    return f"the row with prompt {repr(prompt)[:120]}"


def message_text(message: dict[str, Any]) -> str:
    """Text of a message: its content, or the text blocks of it."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(block.get("text") or "" for block in content)


def reaches(value: float, threshold: float) -> bool:
    """Whether a reward, or a number of votes, is at least a threshold. Rewards and their weights come through float32,
    so what lacks a millionth reaches it; `nan` reaches none."""
    return value >= threshold or math.isclose(value, threshold, rel_tol=1e-6, abs_tol=1e-6)


def _tool_error(message: dict[str, Any]) -> str | None:
    text = message_text(message).strip()
    if not text.startswith(("{'error':", '{"error":')):
        return None
    try:
        return str(ast.literal_eval(text)["error"])
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # JSON with null, or no literal at all
        return text
