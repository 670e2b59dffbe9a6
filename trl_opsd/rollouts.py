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


PrivilegedSource = Callable[[list[Rollout]], list[list[View]]]
