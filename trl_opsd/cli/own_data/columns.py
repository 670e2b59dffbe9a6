# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Columns of a user's data: the prompt and the privileged context, found by their names and checked by their values."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl_opsd.cli.errors import UserError
from trl_opsd.cli.own_data.reading import OwnData
from trl_opsd.options import near


PROMPTS = ("prompt", "question", "problem", "instruction", "query", "input", "task")
CONTEXTS = (
    "privileged_context", "solution", "reference_solution", "answer", "reference_answer", "reference", "rationale",
    "explanation", "reasoning", "feedback", "critique", "hint", "hints", "demonstration", "ground_truth", "target",
    "completion", "response", "output",
)  # fmt: skip
CHATS = ("messages", "conversations", "conversation")


@dataclass
class Column:
    """
    A column with its kind.

    Args:
        name (`str`): Its name.
        values (`list[Any]`): Its values in the first rows, without `None`.
        messages (`bool`): Whether it holds chat messages, and otherwise text.
    """

    name: str
    values: list[Any]
    messages: bool

    @property
    def texts(self) -> list[str]:
        """Text of each value."""
        if not self.messages:
            return self.values
        return ["\n".join(str(message.get("content") or "") for message in value) for value in self.values]

    @property
    def is_bare(self) -> bool:
        """Whether its texts are bare answers that show no way to them."""
        return not self.messages and statistics.median(len(text.split()) for text in self.texts) <= 3


def prompt_of(data: OwnData, given: str | None) -> Column:
    """
    The column with the prompts.

    Args:
        data ([`OwnData`]): The data.
        given (`str`, *optional*): Its name, if the user gives it.

    Raises:
        UserError: If none fits or several do, or one holds no prompts.
    """
    fitting = [name for name in PROMPTS if name in data.columns]
    chats = [name for name in CHATS if name in data.columns]
    if given is None and not fitting and chats:
        first = next((value for value in data.values(chats[0]) if value), None)
        raise UserError(
            f"`--data` has whole conversations (`{chats[0]}`) and no prompts. Split off the last message, for the "
            f"teacher to read as `solution`; {data.converted(split_off(chats[0], first))}"
        )
    name = chosen(data, "--prompt", given, fitting, "the prompt", PROMPTS)
    values = data.values(name)
    for number, value in enumerate(values):
        check_prompt_value(data, name, number, value)
    if len({isinstance(value, str) for value in values}) > 1:
        raise UserError(f"`--data`: the column `{name}` mixes text and chat messages: make it one of them.")
    return Column(name, values, not isinstance(values[0], str))


def context_of(data: OwnData, given: str | None, prompt: str) -> Column:
    """
    The column that the teacher reads.

    Args:
        data ([`OwnData`]): The data.
        given (`str`, *optional*): Its name, if the user gives it.
        prompt (`str`): Name of the column with the prompts.

    Raises:
        UserError: If none fits or several do, or one holds what no teacher can read.
    """
    fitting = [name for name in CONTEXTS if name in data.columns and name != prompt]
    name = chosen(data, "--context", given, fitting, "what only the teacher reads", CONTEXTS)
    if name == prompt:
        raise UserError(f"`--context` is {name}, which is the prompt: the teacher must read more than the student.")
    values = data.values(name)
    for number, value in enumerate(values):
        check_context_value(data, name, number, value)
    values = [value for value in values if value is not None]
    if not values:
        raise UserError(f"`--data`: the column `{name}` holds nothing: name another by `--context`.")
    return Column(name, values, not isinstance(values[0], str))


def chosen(
    data: OwnData, option: str, given: str | None, fitting: Sequence[str], what: str, known: Sequence[str]
) -> str:
    """One column: that of the user, the first of the known names, or the only one that fits."""
    columns = ", ".join(data.columns)
    if given is not None:
        if given not in data.columns:
            advice = near(given, data.columns)
            raise UserError(f"`{option}` is {given}, and the data has no such column{advice}: it has {columns}.")
        return given
    if fitting and (fitting[0] == known[0] or len(fitting) == 1):
        return fitting[0]
    if not fitting:
        raise UserError(f"no column has a usual name of {what}: name one of {columns} by `{option} COLUMN`.")
    raise UserError(f"several columns may be {what}: {', '.join(fitting)}. Name one by `{option} COLUMN`.")


def split_off(column: str, value: Any) -> str:
    """Python expression that makes prompt and solution of a `row` with a whole conversation."""
    keys = set(value[0]) if isinstance(value, list) and value and isinstance(value[0], dict) else set()
    if {"from", "value"} <= keys:  # another format of conversations
        roles = "{'human': 'user', 'gpt': 'assistant'}"
        renamed = f"{{'role': {roles}.get(m['from'], m['from']), 'content': m['value']}}"
        return f"{{'prompt': [{renamed} for m in row['{column}'][:-1]], 'solution': row['{column}'][-1]['value']}}"
    return f"{{'prompt': row['{column}'][:-1], 'solution': row['{column}'][-1]['content']}}"


def is_chat(value: Any) -> bool:
    """Whether a value is a list of chat messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in value)
    )


def check_prompt_value(data: OwnData, name: str, number: int, value: Any) -> None:
    """Refuse a value that is no prompt."""
    where = f"`--data`, row {number}: the column `{name}`"
    if isinstance(value, str) and value.strip():
        return
    if not is_chat(value):
        raise UserError(
            f"{where} holds {worded(value)}. A prompt is text, or a list of chat messages with the keys `role` and "
            "`content`, and not empty."
        )
    if value[-1]["role"] == "assistant":
        raise UserError(
            f"{where} ends with the assistant's message, and the student would go on after it. Split it off; "
            f"{data.converted(split_off(name, value))}"
        )


def check_context_value(data: OwnData, name: str, number: int, value: Any) -> None:
    """Refuse a value that no teacher can read; say how to make text of it."""
    where = f"`--data`, row {number}: the column `{name}`"
    if value is None or (isinstance(value, str) and value.strip()) or is_chat(value):
        return
    if isinstance(value, str):
        made, what = f"(row['{name}'] or '').strip() or None", "is empty, and a row without a context has null there"
    else:
        made = f"None if row['{name}'] is None else str(row['{name}'])"
        if is_texts(value):
            made = f"'\\n\\n'.join(row['{name}'] or []) or None"
        what = f"holds {worded(value)}, and a teacher reads text or chat messages"
    expression = f"{{'privileged_context': {made}}}"
    # A column of its own, as `map` keeps the type of a column that is there
    raise UserError(f"{where} {what}; {data.converted(expression)}")


def is_texts(value: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def worded(value: Any) -> str:
    """A value in an error."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
