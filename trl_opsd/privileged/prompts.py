# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A privileged context and a student prompt make a teacher prompt. Text is placed, never interpreted."""

from typing import Any

from trl_opsd.config import PLACEHOLDER
from trl_opsd.rollouts import Messages


def check_context(context: Any, where: str) -> None:
    """
    Refuse what can't be a privileged context.

    Args:
        context (`Any`): A dataset value that is not `None`.
        where (`str`): Row and column, for the error.

    Raises:
        ValueError: If it is neither text nor chat messages, or is empty, or can't be encoded.
    """
    if isinstance(context, str):
        if not context.strip():
            raise ValueError(f"{where} is an empty string. Use None for a row without privileged context.")
        _check_encodable(context, where)
        return
    if not isinstance(context, list) or not context or not all(isinstance(message, dict) for message in context):
        raise ValueError(
            f"{where} must be a string, a list of chat messages, or None for a row without privileged context; got "
            f"{_excerpt(context)} of type {type(context).__name__}."
        )
    for number, message in enumerate(context):
        _check_content(message.get("content"), f"{where}: message {number}")
        text = content_text(message.get("content"))
        has_more = message.get("tool_calls") or message.get("reasoning_content")
        if not message.get("role") or (not text.strip() and not has_more):
            raise ValueError(
                f"{where}: message {number} needs a role and content, got {_excerpt(message)}. Remove the message or "
                "fill it in."
            )
        _check_encodable(text, f"{where}: message {number}")


def check_prompt(prompt: Any, where: str) -> None:
    """
    Refuse what a teacher could not read as its prompt: neither text nor messages, nothing, or what can't be encoded.

    Args:
        prompt (`Any`): Prompt of a view.
        where (`str`): View and row, for the error.
    """
    if not prompt or not isinstance(prompt, (str, list)) or any(not isinstance(item, (str, dict)) for item in prompt):
        raise ValueError(f"{where} must be text or a list of chat messages, got {_excerpt(prompt)}.")
    if isinstance(prompt, str):
        _check_encodable(prompt, where)
        return
    for number, message in enumerate(prompt):
        _check_content(message.get("content"), f"{where}: message {number}")
        _check_encodable(content_text(message.get("content")), f"{where}: message {number}")


def _check_content(content: Any, where: str) -> None:
    blocks = isinstance(content, list) and all(isinstance(block, dict) for block in content)
    if content is not None and not isinstance(content, str) and not blocks:
        raise ValueError(
            f"{where} has content {_excerpt(content)} of type {type(content).__name__}: it must be a string or a list "
            "of content blocks."
        )


def content_text(content: Any) -> str:
    """Text of a message's content: the content itself, or its text blocks."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(block.get("text") or "" for block in content)


def teacher_prompt(prompt: str | Messages, context: str | Messages, template: str, place: str) -> str | Messages:
    """
    The prompt that the teacher reads.

    A string goes through `template` (only the placeholder is replaced) to `place`, with an empty line between it and
    the prompt's text unless the template brings white space of its own on that side. Chat messages stand before the
    prompt's own; a system message among the first is put before the prompt's system text, if it has one.

    Args:
        prompt (`str` or `list[dict]`): The student's prompt.
        context (`str` or `list[dict]`): Privileged context, checked by [`check_context`].
        template (`str`): Text with the placeholder `{privileged_context}`.
        place (`str`): `"system"`, `"before_user"` or `"after_user"`.
    """
    if isinstance(context, str):
        text = template.replace(PLACEHOLDER, context)
        if isinstance(prompt, str):
            return _joined(text, prompt, before=place != "after_user")
        return _with_system(prompt, text) if place == "system" else _with_user_text(prompt, text, place)
    if isinstance(prompt, str):
        raise ValueError(
            "The privileged context is a list of chat messages, but the prompt is plain text. Make the prompt a list "
            "of messages too, or the context a string."
        )
    # Arrow gives every message of a column every key, None where a message lacks it
    messages = [{key: value for key, value in message.items() if value is not None} for message in context]
    if messages[0]["role"] == "system":
        prompt = _with_system(prompt, content_text(messages[0]["content"]))
        return [prompt[0], *messages[1:], *prompt[1:]]
    own_system = 1 if prompt[0]["role"] == "system" else 0
    return [*prompt[:own_system], *messages, *prompt[own_system:]]


def _with_system(prompt: Messages, text: str) -> Messages:
    if prompt[0]["role"] != "system":
        return [{"role": "system", "content": text}, *prompt]
    return [{**prompt[0], "content": _joined(text, prompt[0]["content"], before=True)}, *prompt[1:]]


def _with_user_text(prompt: Messages, text: str, place: str) -> Messages:
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=None)
    if last is None:
        raise ValueError(
            f"`privileged_place={place!r}` needs a user message in the prompt, and this one has none: "
            f"{_excerpt(prompt)}. Use `privileged_place='system'`."
        )
    message = {**prompt[last], "content": _joined(text, prompt[last]["content"], before=place == "before_user")}
    return [*prompt[:last], message, *prompt[last + 1 :]]


def _joined(text: str, content: str | list[dict], before: bool) -> str | list[dict]:
    """Text and a message's content, set apart; content blocks get one more text block."""
    if not text[-1 if before else 0].isspace():
        text = f"{text}\n\n" if before else f"\n\n{text}"
    if isinstance(content, list):
        block = {"type": "text", "text": text}
        return [block, *content] if before else [*content, block]
    return f"{text}{content}" if before else f"{content}{text}"


def _check_encodable(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} holds a lone surrogate at character {error.start}, which no tokenizer can encode. Clean the "
            "text, for example with `text.encode('utf-8', 'replace').decode()`."
        ) from None


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
