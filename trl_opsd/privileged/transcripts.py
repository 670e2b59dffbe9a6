# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Transcripts: a rollout as text for a teacher or an author, with or without thought blocks.

A rollout that is shown as an example or a solution is shown without its thoughts, unless an option keeps them. One that
is judged is read with them, and what is copied out of it keeps them. Of what an author writes, its own thoughts are
left out.
"""

import json
import re
from typing import Any

from trl_opsd.rollouts.rollout import Rollout, Turn, message_text


# A block that is still open belongs to it up to the end: nothing after it was meant as the answer
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)", re.DOTALL)
_CLOSED_ONLY = re.compile(r"\A.*?(?:</think>|\[/THINK\])", re.DOTALL)  # the prompt has opened it
_OPENED = re.compile(r"<think>|\[THINK\]")


def without_thinking(text: str) -> str:
    """Text without its thought blocks."""
    text = _THINKING.sub("", text)
    return _CLOSED_ONLY.sub("", text).strip()


def without_first_thinking(text: str) -> str:
    """Text without the thought block that it begins with. Later blocks stay, as parts of another text may be copied."""
    if first := _THINKING.match(text.lstrip()):
        return text.lstrip()[first.end() :].strip()
    closed = _CLOSED_ONLY.match(text)
    if closed and not _OPENED.search(closed.group()):
        return text[closed.end() :].strip()
    return text.strip()


def shown(rollout: Rollout, *, thinking: bool, tools: bool) -> str:
    """
    Turns of a rollout as one text.

    Args:
        rollout ([`Rollout`]): Rollout to show.
        thinking (`bool`): Whether to keep thought blocks and reasoning.
        tools (`bool`): Whether to show tool calls and their results.
    """
    return "\n".join(part for turn in rollout.turns for part in _parts(turn, thinking, tools) if part)


def _parts(turn: Turn, thinking: bool, tools: bool) -> list[str]:
    reasoning = turn.message.get("reasoning_content") or "" if thinking else ""
    parts = [reasoning.strip(), turn.text.strip() if thinking else without_thinking(turn.text)]
    if not tools:
        return parts
    parts += [f"Call: {call_text(call)}" for call in turn.message.get("tool_calls") or []]
    return parts + [f"Result: {message_text(result)}" for result in turn.results]


def call_text(call: dict[str, Any]) -> str:
    """Tool call as text, such as `add({"a": 1})`."""
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"{function.get('name')}({text})"
