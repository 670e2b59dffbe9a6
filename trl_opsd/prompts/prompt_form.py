# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Form of prompts and messages: what can be text or chat messages at all."""

from typing import Any

from trl_opsd.prompts.teacher_prompt import excerpt


def check_prompt_form(prompt: Any, where: object) -> None:
    """
    Validate the form of a prompt: text or chat messages, not empty.

    Args:
        prompt (`Any`): Prompt of a student or a teacher.
        where (`object`): Row and column, or view, as text for the error.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(prompt, (str, list)) or not prompt:
        way = "Put a message into a list" if isinstance(prompt, dict) else "Fill it in, or remove the row"
        raise ValueError(
            f"{where} must be text or a list of chat messages, and not empty; got {excerpt(prompt)} of type "
            f"{type(prompt).__name__}. {way}."
        )
    for number, message in enumerate(() if isinstance(prompt, str) else prompt):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or not role:
            raise ValueError(
                f"{where}: message {number} must be a chat message with the keys `role` and `content`, got "
                f"{excerpt(message)}. Rename its keys (other formats have `from` and `value`), fill it in or remove it."
            )
        check_content(message.get("content"), f"{where}: message {number}")


def check_content(content: Any, where: object) -> None:
    """
    Validate the content of a chat message: text, content blocks or `None`.

    Raises:
        ValueError: If it is something else; `where` names the message.
    """
    blocks = isinstance(content, list) and all(isinstance(block, dict) for block in content)
    if content is not None and not isinstance(content, str) and not blocks:
        raise ValueError(
            f"{where} has content {excerpt(content)} of type {type(content).__name__}: it must be a string or a list "
            "of content blocks."
        )


def check_images(content: Any, where: object) -> None:
    """
    Check that image blocks hold their image.

    Raises:
        ValueError: If one does not; `where` names the message.
    """
    for block in content if isinstance(content, list) else ():
        if block.get("type") == "image" and block.get("image") is None:
            raise ValueError(f"{where} has an image block without an image: put it under the block's key `image`.")
