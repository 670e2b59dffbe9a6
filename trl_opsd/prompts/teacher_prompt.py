# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Teacher prompts: a privileged context within the student's prompt. Text is placed, never interpreted."""

from typing import Any

from trl_opsd.rollouts.message_images import decoded
from trl_opsd.rollouts.rollout import Messages, message_text, named_by_prompt
from trl_opsd.rollouts.view import PLACEHOLDER, PROMPT_PLACES, View


BEGIN, END = "[[", "]]"  # around a context that is shown


def teacher_prompt(prompt: str | Messages, context: str | Messages, template: str, place: str) -> str | Messages:
    """
    Teacher prompt of a privileged context and the student's prompt.

    A string goes through `template` (only the placeholder is replaced) to `place`, with an empty line between it and
    the prompt's text unless the template brings white space of its own on that side. Chat messages stand before the
    prompt's own; a system message among the first is put before the prompt's system text, if it has one.

    Args:
        prompt (`str` or `list[dict]`): Prompt of the student.
        context (`str` or `list[dict]`): Privileged context, valid by [`~trl_opsd.privileged.checks.check_context`].
        template (`str`): Text with the placeholder `{privileged_context}`.
        place (`str`): `"system"`, `"before_user"`, `"after_user"` or `"user_turn"`.
    """
    if isinstance(context, str):
        text = template.replace(PLACEHOLDER, context)
        if isinstance(prompt, str):
            return _joined(text, prompt, before=place in ("system", "before_user"))
        if place == "user_turn":
            return [*prompt, {"role": "user", "content": text}]
        return _with_system(prompt, text) if place == "system" else _with_user_text(prompt, text, place)
    if isinstance(prompt, str):
        raise ValueError(
            "The privileged context is a list of chat messages, but the prompt is plain text. Make the prompt a list "
            "of messages too, or the context a string."
        )
    messages = [_from_arrow(message) for message in context]
    if messages[0]["role"] == "system":
        prompt = _with_system(prompt, message_text(messages[0]))
        return [prompt[0], *messages[1:], *prompt[1:]]
    own_system = 1 if prompt[0]["role"] == "system" else 0
    return [*prompt[:own_system], *messages, *prompt[own_system:]]


def whole_prompt(view: View, prompt: str | Messages) -> str | Messages | None:
    """
    Prompt that the teacher reads for a view, `None` where the context stands between the student's own tokens.

    Args:
        view ([`View`]): A valid view.
        prompt (`str` or `list[dict]`): Prompt of the student.

    Raises:
        ValueError: If the context does not fit into the prompt; it names the view and the row.
    """
    if view.prompt is not None or view.context is None:
        return prompt if view.prompt is None else view.prompt
    if view.place not in PROMPT_PLACES:
        return None
    try:
        return teacher_prompt(prompt, view.context, view.template, view.place)
    except ValueError as error:
        raise named_error(view, prompt, error) from None


def named_error(view: View, prompt: str | Messages, error: Exception) -> ValueError:
    """An error of a view with its name and that of its row."""
    return ValueError(f"The view {view.name!r} of {named_by_prompt(prompt)}: {error}")


def _from_arrow(message: dict[str, Any]) -> dict[str, Any]:
    """Chat message as a dataset column gives it, in the form that templates take: without the keys that Arrow adds to
    every message and content block with None, and with images decoded from their files."""
    message = {key: value for key, value in message.items() if value is not None}
    if isinstance(message.get("content"), list):
        message["content"] = [
            {key: decoded(value) if key == "image" else value for key, value in block.items() if value is not None}
            for block in message["content"]
        ]
    return message


def _with_system(prompt: Messages, text: str) -> Messages:
    if prompt[0]["role"] != "system":
        return [{"role": "system", "content": text}, *prompt]
    return [{**prompt[0], "content": _joined(text, prompt[0].get("content"), before=True)}, *prompt[1:]]


def _with_user_text(prompt: Messages, text: str, place: str) -> Messages:
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=None)
    if last is None:
        raise ValueError(
            f"the place {place!r} needs a user message in the prompt, and this one has none: {excerpt(prompt)}. Use "
            "the place 'system'."
        )
    message = {**prompt[last], "content": _joined(text, prompt[last].get("content"), before=place == "before_user")}
    return [*prompt[:last], message, *prompt[last + 1 :]]


def _joined(text: str, content: str | list[dict] | None, before: bool) -> str | list[dict]:
    """Message content with a text before or after it, set apart; content blocks get one more text block, and where
    there is none, the text is all."""
    if content is None:
        return text
    if not text[-1 if before else 0].isspace():
        text = f"{text}\n\n" if before else f"\n\n{text}"
    if isinstance(content, list):
        block = {"type": "text", "text": text}
        return [block, *content] if before else [*content, block]
    return f"{text}{content}" if before else f"{content}{text}"


def excerpt(value: Any) -> str:
    """Beginning of a value's `repr`, for errors."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def context_spans(text: str, view: View) -> list[tuple[int, int]]:
    """
    Places of a view's contexts in what the teacher reads, as first and last character; none where they are not found.

    Args:
        text (`str`): What the teacher reads.
        view ([`View`]): Its view.
    """
    if isinstance(view.context, str):
        own = view.text.strip()
        # The context may be a word of the question too, but hardly so with the template around it
        place = (text.find if view.place in ("system", "before_user") else text.rfind)(own)
        if place < 0:
            return []
        before = view.template.partition(PLACEHOLDER)[0].lstrip()
        begin = place + (len(before) if own.startswith(before) else 0)
        return [(begin, begin + len(view.context.strip()))]
    spans, start = [], 0
    for message in view.context or ():
        context = message_text(message).strip()
        if context and (place := text.find(context, start)) >= 0:
            start = place + len(context)
            spans.append((place, start))
    return spans


def marked(text: str, view: View) -> str:
    """Text of a teacher's prompt with `[[` and `]]` around its contexts; the arguments are those of
    [`context_spans`]."""
    for begin, end in reversed(context_spans(text, view)):
        text = text[:begin] + BEGIN + text[begin:end] + END + text[end:]
    return text
