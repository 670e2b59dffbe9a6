# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What a privileged source sees of the student's work: [`Rollout`]."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


Messages = list[dict[str, Any]]


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
        completion_ids (`list[int]`):
            Token ids of the completion, without padding.
        rewards (`dict[str, float]`):
            Reward by function name, `nan` where a function gave none. Empty without rewards.
        group (`int`):
            Number of its prompt in the global generation batch: rollouts of one prompt share it.
        index (`int`):
            Position in the global generation batch.
        step (`int`):
            Optimizer step at which it was sampled.
    """

    row: dict[str, Any]
    prompt: str | Messages
    completion: str | Messages
    completion_ids: list[int]
    rewards: dict[str, float]
    group: int
    index: int
    step: int


@dataclass(frozen=True)
class View:
    """
    One privileged context for one rollout.

    Args:
        prompt (`str` or `list[dict]`):
            The whole prompt that the teacher reads, of the same kind as the student's (text or chat messages).
        name (`str`, *optional*, defaults to `"privileged"`):
            Views of one name are one teacher: they share a forward pass and a metric. A rollout has at most one view of
            a name.
        weight (`float`, *optional*, defaults to `1.0`):
            Weight among the views of its rollout; a token's loss is the weighted mean over them.
        context (`str` or `list[dict]`, *optional*):
            The privileged part alone. It is shown in the completions table, and its text never acts as control tokens.
    """

    prompt: str | Messages
    name: str = "privileged"
    weight: float = 1.0
    context: str | Messages | None = field(default=None)


def collect_rollouts(
    rows: list[dict[str, Any]],
    prompts: list[str | Messages],
    completions: list[str | Messages],
    completion_ids: list[list[int]],
    rewards: list[dict[str, float]],
    first_index: int,
    group_size: int,
    step: int,
) -> list[Rollout]:
    """
    The rollouts of one rank.

    Args:
        rows, prompts, completions, completion_ids, rewards (`list`): What TRL hands over, one item a rollout.
        first_index (`int`): Position of the first in the global generation batch, where groups are contiguous and may
            straddle ranks.
        group_size (`int`): Rollouts of one prompt.
        step (`int`): Optimizer steps taken so far.
    """
    items = zip(rows, prompts, completions, completion_ids, rewards, strict=True)
    return [
        Rollout(row, prompt, completion, list(ids), reward, index // group_size, index, step)
        for index, (row, prompt, completion, ids, reward) in enumerate(items, first_index)
    ]


PrivilegedSource = Callable[[list[Rollout]], list[list[View]]]


def shown_context(views: list[View]) -> str | None:
    """The contexts of a rollout's views as one text, for the completions table."""
    if len(views) > 1:
        return "\n".join(f"[{view.name}] {view.context}" for view in views)
    return str(views[0].context) if views else None
