# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Validation of privileged contexts, prompts, views, dataset columns and rewards."""

import math
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from datasets import Dataset, IterableDataset

from trl_opsd.conflicts import NO_REWARD
from trl_opsd.prompts.control_tokens import strings
from trl_opsd.prompts.prompt_form import check_content, check_images, check_prompt_form
from trl_opsd.prompts.teacher_prompt import excerpt
from trl_opsd.rollouts.message_images import images_of
from trl_opsd.rollouts.rollout import Rollout, message_text
from trl_opsd.rollouts.view import PLACEHOLDER, PLACES, PROMPT_PLACES, READERS, View


@dataclass(frozen=True)
class Where:
    """
    Name of a value of a rollout in an error, written when an error needs it: the row's prompt may be long.

    Args:
        before (`str`): Text before the name of the rollout.
        rollout ([`Rollout`]): The rollout.
        after (`str`): Text after it.
    """

    before: str
    rollout: Rollout
    after: str = ""

    def __str__(self) -> str:
        return f"{self.before}{self.rollout.where}{self.after}"


def source_name(source: Any) -> str:
    """Name of a source in errors: that of the function, or of the class."""
    return getattr(source, "__name__", type(source).__name__)


def check_context(context: Any, where: "str | Where") -> None:
    """
    Validate a privileged context.

    Args:
        context (`Any`): A dataset value that is not `None`.
        where (`str` or [`Where`]): Row and column, for the error.

    Raises:
        ValueError: If it is neither text nor chat messages, or is empty, or can't be encoded.
    """
    if isinstance(context, str):
        if not context.strip():
            raise ValueError(f"{where} is an empty string. Use None for a row without privileged context.")
        check_encodable(context, where)
        return
    if not isinstance(context, list) or not context or not all(isinstance(message, dict) for message in context):
        raise ValueError(
            f"{where} must be a string, a list of chat messages, or None for a row without privileged context; got "
            f"{excerpt(context)} of type {type(context).__name__}."
        )
    for number, message in enumerate(context):
        check_content(message.get("content"), f"{where}: message {number}")
        check_images(message.get("content"), f"{where}: message {number}")
        text = message_text(message)
        has_more = message.get("tool_calls") or message.get("reasoning_content") or images_of([message])
        if not message.get("role") or (not text.strip() and not has_more):
            raise ValueError(
                f"{where}: message {number} needs a role and content, got {excerpt(message)}. Remove the message or "
                "fill it in."
            )
        for part in strings(message):
            check_encodable(part, f"{where}: message {number}")


def check_column(column: str, dataset: Dataset | IterableDataset, name: str, option: str) -> None:
    """
    Check that a dataset has a column. One that streams may not know its columns.

    Args:
        column (`str`): Name of the column.
        dataset (`Dataset` or `IterableDataset`): Dataset to look at.
        name (`str`): How errors name it.
        option (`str`): Option of the source that names the column.

    Raises:
        ValueError: Naming the columns that there are.
    """
    if dataset.column_names is not None and column not in dataset.column_names:
        raise ValueError(
            f"`{name}` has no column `{column}`, which the option `{option}` of the privileged source names; it has "
            f"{dataset.column_names}."
        )


def column_of(rollout: Rollout, column: str, option: str) -> Any:
    """
    Value of a dataset column for a rollout.

    Args:
        rollout ([`Rollout`]): Rollout of the row.
        column (`str`): Name of the column.
        option (`str`): Option of the source that names the column.

    Raises:
        ValueError: If its row has no such column, as a dataset that streams can't be checked before.
    """
    if column not in rollout.row:
        raise ValueError(
            f"There is no column `{column}`, which the option `{option}` of the privileged source names, in "
            f"{rollout.where}; it has {list(rollout.row)}."
        )
    return rollout.row[column]


def text_of(rollout: Rollout, column: str, option: str) -> str | None:
    """
    Text that a dataset column holds for a rollout, or `None`.

    Args:
        rollout, column, option: As in [`column_of`].

    Raises:
        ValueError: If the row has no such column, or another value there.
    """
    text = column_of(rollout, column, option)
    if text is not None and not isinstance(text, str):
        raise ValueError(f"The column `{column}` of {rollout.where} must be text or None, got {text!r}.")
    return text


def check_prompt(prompt: Any, where: str | Where) -> None:
    """
    Validate a teacher's prompt: text or chat messages, not empty, that can be encoded.

    Args:
        prompt (`Any`): Prompt of a view.
        where (`str` or [`Where`]): View and row, for the error.

    Raises:
        ValueError: If it is none.
    """
    check_prompt_form(prompt, where)
    for number, message in enumerate([prompt] if isinstance(prompt, str) else prompt):
        here = where if isinstance(prompt, str) else f"{where}: message {number}"
        check_images([] if isinstance(prompt, str) else message.get("content"), here)
        for part in strings(message):
            check_encodable(part, here)


def row_error(views: Any, rollout: Rollout, source: Any) -> ValueError | None:
    """
    Error of the views that a source gave for a rollout, `None` where they are valid.

    Args:
        views (`Any`): What it gave.
        rollout ([`Rollout`]): For which rollout.
        source (`PrivilegedSource`): Source that gave them.
    """
    if not isinstance(views, list) or not all(isinstance(view, View) for view in views):
        return ValueError(
            f"The privileged source {source_name(source)} must return a list of `View` for each rollout (an "
            f"empty one for a rollout without), got {repr(views)[:120]} for {rollout.where}."
        )
    names = [view.name for view in views]
    if len(set(names)) != len(names):
        return ValueError(
            f"The views of a rollout need different names, got {names} from {source_name(source)} for {rollout.where}."
        )
    try:
        for view in views:
            check_view(view, rollout)
    except ValueError as error:
        return error
    return None


def check_view(view: View, rollout: Rollout) -> None:
    """
    Validate a view of a rollout.

    Raises:
        ValueError: If the teacher can't read it; it names the view and the row.
    """
    here = Where(f"The view {view.name!r} of ", rollout)
    if not isinstance(view.name, str) or not view.name:
        raise ValueError(f"A view of {rollout.where} has the name {view.name!r}: a name is text.")
    if not isinstance(view.weight, (int, float)) or not 0 < view.weight < math.inf:
        raise ValueError(
            f"{here} has weight {view.weight}: weights are above 0 and finite; leave out a view that should not count."
        )
    if view.bundle is not None and not isinstance(view.bundle, str):
        raise ValueError(f"{here} has the bundle {view.bundle!r}: it must be text, or None.")
    if view.reader not in READERS:
        raise ValueError(f"{here} has the reader {view.reader!r}: it must be one of {list(READERS)}.")
    if view.place not in PLACES:
        raise ValueError(f"{here} has place {view.place!r}: it must be one of {list(PLACES)}.")
    _check_options(view, here)
    if view.context is not None:
        check_context(view.context, replace(here, after=": its context"))
        if not isinstance(view.context, str) and view.prompt is None and view.place not in PROMPT_PLACES:
            raise ValueError(f"{here} has chat messages, which stand before the prompt's own: no place {view.place!r}.")
    if view.prompt is not None:
        check_prompt(view.prompt, replace(here, after=": its prompt"))
        if isinstance(view.prompt, str) != isinstance(rollout.prompt, str):
            raise ValueError(f"{here}: its prompt and the student's must both be text or both be chat messages.")
    _check_position(view, rollout, here)
    length = len(rollout.completion_ids)
    if view.span is not None and not view.start(rollout) <= view.span[0] < view.span[1] <= length:
        raise ValueError(
            f"{here} has span {view.span}: it must lie within the {length} tokens of the completion and after the "
            f"context, which has {view.start(rollout)} of them before it."
        )


def _check_options(view: View, here: Where) -> None:
    """Validate the types of fields that a user-defined source sets."""
    if not isinstance(view.template, str) or PLACEHOLDER not in view.template:
        raise ValueError(
            f"{here} has the template {excerpt(view.template)}: it must be text with the placeholder {PLACEHOLDER}."
        )
    check_encodable(view.template, replace(here, after=": its template"))
    if view.role is not None and not isinstance(view.role, str):
        raise ValueError(f"{here} has role {view.role!r}: it must be text, or None.")
    if view.chat_template_kwargs is not None and not isinstance(view.chat_template_kwargs, dict):
        raise ValueError(f"{here} has chat_template_kwargs {excerpt(view.chat_template_kwargs)}: it must be a dict.")
    if view.position is not None and not isinstance(view.position, Integral):
        raise ValueError(f"{here} has position {view.position!r}: it must be a whole number.")
    span = view.span
    is_pair = isinstance(span, (tuple, list)) and len(span) == 2 and all(isinstance(end, Integral) for end in span)
    if span is not None and not is_pair:
        raise ValueError(f"{here} has span {excerpt(span)}: it must be a tuple of two whole numbers.")


def _check_position(view: View, rollout: Rollout, here: Where) -> None:
    if view.position is None and view.place in PROMPT_PLACES:
        return
    if not view.inserted:
        if view.position is not None:
            raise ValueError(f"{here} has position {view.position}, which only 'before_turn' and 'before_token' read.")
        return
    if view.context is None:
        raise ValueError(f"{here} has place {view.place!r} and no context to put there.")
    what, count = "tokens", len(rollout.completion_ids)
    if view.place == "before_turn":
        what, count = "turns", len(rollout.turns)
    if view.position is None or not 0 <= view.position < count:
        raise ValueError(
            f"{here} has place {view.place!r} and position {view.position}: the completion has {count} {what}, counted "
            "from 0."
        )


def check_encodable(text: str, where: str | Where) -> None:
    """Check that a text has no lone surrogate, which tokenizers can't encode. `where` names it in the error."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} holds a lone surrogate at character {error.start}, which no tokenizer can encode. Clean the "
            "text, for example with `text.encode('utf-8', 'replace').decode()`."
        ) from None


def check_scored(rollout: Rollout, who: str) -> None:
    """
    Refuse to tell successes from failures in a run without rewards, where all would count as failed.

    Args:
        rollout ([`Rollout`]): Any of the run.
        who (`str`): Source or condition that asks, for the error.

    Raises:
        ValueError: If the run has no rewards.
    """
    if not rollout.rewards:
        raise ValueError(NO_REWARD.format(who))


def check_needs(owner: Any, who: str, has_reward: bool, group_size: int) -> None:
    """
    Refuse a source or a condition in a run that lacks what it needs.

    Args:
        owner (`Any`): The source or condition. Its attributes `needs_reward` and `needs_groups`, if it has them, say
            whether it looks at rewards, and at other rollouts of the prompt.
        who (`str`): How errors name it.
        has_reward (`bool`): Whether rewards are given.
        group_size (`int`): Rollouts of a prompt.

    Raises:
        ValueError: If there is no reward, or a prompt has one rollout alone.
    """
    if getattr(owner, "needs_reward", False) and not has_reward:
        raise ValueError(NO_REWARD.format(who))
    if getattr(owner, "needs_groups", False) and group_size < 2:
        raise ValueError(
            f"{who} looks at other rollouts of a prompt, and `num_generations={group_size}` gives none. Set "
            "`num_generations` to at least 2, or choose what needs no group."
        )
