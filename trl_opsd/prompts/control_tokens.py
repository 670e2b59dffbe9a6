# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Encoding of control tokens in a privileged context as plain text."""

import re
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_opsd.rollouts.rollout import Messages


# Keys whose values a template reads to decide, and never prints as text
_NOT_TEXT = ("role", "type")
_ARGUMENTS = "arguments"


def strings(value: Any, data: bool = False) -> list[str]:
    """
    All texts in a prompt or context: contents, reasoning, arguments of tool calls with their names.

    Args:
        value (`Any`): Text, messages, or a part of them.
        data (`bool`, *optional*, defaults to `False`): Whether it is an argument of a tool call, all of which is text.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        own = [key for key in value if isinstance(key, str)] if data else []
        parts = ((item, data or key == _ARGUMENTS) for key, item in value.items() if data or key not in _NOT_TEXT)
        return own + [text for part in parts for text in strings(*part)]
    return [text for item in value for text in strings(item, data)] if isinstance(value, list) else []


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special tokens of the tokenizer, named or not, longest first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*tokenizer.all_special_tokens, *added} - {""}, key=len, reverse=True)


def control_tokens(tokenizer: PreTrainedTokenizerBase, context: str | Messages | None) -> list[str]:
    """Special tokens that occur as text in a privileged context, longest first."""
    return control_tokens_of(tokenizer, [context])[0]


def control_tokens_of(tokenizer: PreTrainedTokenizerBase, contexts: list[str | Messages | None]) -> list[list[str]]:
    """[`control_tokens`] of each of several contexts."""
    special, texts = special_tokens(tokenizer), [strings(context) for context in contexts]
    return [[token for token in special if any(token in text for text in of_one)] for of_one in texts]


def encode_literally(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    context: str | Messages,
    render: Callable[[str | Messages], str],
    start: list[int],
) -> list[int]:
    """
    Encode a teacher prompt whose context holds control tokens as text.

    They are taken out of the prompt, the prompt is rendered, and the pieces between are encoded as always while the
    taken ones are encoded with special tokens switched off.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer.
        prompt (`str` or `list[dict]`): Teacher prompt that holds the context.
        context (`str` or `list[dict]`): Privileged context.
        render (`Callable`): From a prompt to the text that would be encoded.
        start (`list[int]`): First ids, such as the BOS that bare text gets.
    """
    tokens = control_tokens(tokenizer, context)
    mark = _unused_character("".join(strings(prompt)))
    parts = [text for text in strings(context) if any(token in text for token in tokens)]

    def hide(text: str) -> str:
        for part in sorted(parts, key=len, reverse=True):
            hidden = part
            for number, token in enumerate(tokens):
                hidden = hidden.replace(token, f"{mark}{number}{mark}")
            text = text.replace(part, hidden)
        return text

    pieces = re.split(f"{mark}(\\d+){mark}", render(mapped_strings(prompt, hide)))
    ids = list(start)
    for position, piece in enumerate(pieces):
        if position % 2:  # a number between two marks
            ids += tokenizer(tokens[int(piece)], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        elif piece:
            ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


def _unused_character(text: str) -> str:
    """Private-use character that the text lacks: neither templates nor trimming touch one."""
    return next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)


def mapped_strings(value: Any, change: Callable[[str], str], data: bool = False) -> Any:
    """Copy of a value with every text in it changed; `data` as in [`strings`]."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return dict(_mapped_pair(*pair, change, data) for pair in value.items())
    return [mapped_strings(item, change, data) for item in value] if isinstance(value, list) else value


def _mapped_pair(key: Any, item: Any, change: Callable[[str], str], data: bool) -> tuple[Any, Any]:
    if not data and key in _NOT_TEXT:
        return key, item
    return change(key) if data and isinstance(key, str) else key, mapped_strings(
        item, change, data or key == _ARGUMENTS
    )
