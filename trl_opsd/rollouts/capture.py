# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Rollout capture: from what TRL hands to its generation and reward hooks to [`Rollout`] records, in whole groups."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from trl_opsd.rollouts.rollout import Group, Messages, Rollout, Turn, reaches


@dataclass(frozen=True)
class Sampled:
    """
    Token ids of a generation batch, as TRL's `_generate` returns them.

    Args:
        prompt_ids (`list[list[int]]` of length B): Prompts that the student read.
        tool_mask (`list[list[int]]` of length B, *optional*): For each completion 1 at tokens that the student wrote, 0
            at tool results.
    """

    prompt_ids: list[list[int]]
    tool_mask: list[list[int]] | None


def build_rollouts(
    sampled: Sampled,
    rows: list[dict[str, Any]],
    prompts: list[str | Messages],
    completions: list[str | Messages],
    completion_ids: list[list[int]],
    rewards: list[list[float]],
    logged: Mapping[str, list[Any]],
    *,
    reward_names: list[str],
    reward_weights: list[float],
    success_threshold: float,
    group_size: int,
    first: int,
    step: int,
    training: bool,
    end_token_ids: set[int],
    environments: list[Any] | None,
) -> list[Rollout]:
    """
    The rollouts of this process.

    Args:
        sampled ([`Sampled`]): Their token ids.
        rows, prompts, completions, completion_ids (`list` of length B): As TRL hands them to the rewards.
        rewards (`list[list[float]]` of length B): Rewards of each, one for each reward function.
        logged (`Mapping[str, list]`): What reward functions logged with `log_extra`, by column.
        reward_names, reward_weights (`list`): Name and weight of each reward function, empty without rewards.
        success_threshold (`float`): Total reward from which a rollout counts as a success.
        group_size (`int`): Rollouts of one prompt.
        first (`int`): Position of the first one in the global generation batch.
        step (`int`): Optimizer steps that are done.
        training (`bool`): Whether they are trained on.
        end_token_ids (`set[int]`): Tokens in which a completion ends that is not truncated.
        environments (`list`, *optional*): The environment of each.

    Raises:
        ValueError: If a logged column does not have a value for each rollout.
    """
    extra = rows_of_columns(logged, len(prompts))
    rollouts = []
    for i, values in enumerate(rewards):
        total = total_reward(values, reward_weights) if reward_names else math.nan
        rollouts.append(
            Rollout(
                row=rows[i],
                prompt=prompts[i],
                completion=completions[i],
                prompt_ids=list(sampled.prompt_ids[i]),
                completion_ids=list(completion_ids[i]),
                turns=turns_of(completions[i], completion_ids[i], sampled.tool_mask and sampled.tool_mask[i]),
                rewards=dict(zip(reward_names, values, strict=False)),
                total=total,
                success=reaches(total, success_threshold),
                extra=extra[i],
                group=(first + i) // group_size,
                index=first + i,
                step=step,
                truncated=completion_ids[i][-1] not in end_token_ids,
                training=training,
                environment=None if environments is None else environments[i],
            )
        )
    return rollouts


def turns_of(completion: str | Messages, completion_ids: list[int], tool_mask: list[int] | None) -> list[Turn]:
    """
    Split a completion into the student's turns.

    Args:
        completion (`str` or `list[dict]`): Decoded completion.
        completion_ids (`list[int]`): Its token ids.
        tool_mask (`list[int]`, *optional*): 1 at tokens that the student wrote, 0 at tool results.
    """
    messages = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    starts = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    ends = [*starts[1:], len(messages)]
    spoken = [(messages[start], messages[start + 1 : end]) for start, end in zip(starts, ends, strict=True)]
    if tool_mask is None:
        spans = [(0, len(completion_ids))]
    else:
        runs = [(own, len(list(run))) for own, run in itertools.groupby(tool_mask)]
        starts_of_runs = itertools.accumulate((length for _, length in runs), initial=0)
        spans = [(first, first + length) for first, (own, length) in zip(starts_of_runs, runs, strict=False) if own]
    if len(spoken) != len(spans):  # a `rollout_func` of the user's own may mask as it likes
        spoken = [({"role": "assistant", "content": ""}, []) for _ in spans]
    return [Turn(*span, *parts) for span, parts in zip(spans, spoken, strict=True)]


def rows_of_columns(columns: Mapping[str, list[Any]], count: int) -> list[dict[str, Any]]:
    """
    Values that reward functions wrote with `log_extra`, for each of the rollouts.

    Args:
        columns (`Mapping[str, list]`): Values by column, in the order of the rollouts.
        count (`int`): Local rollouts.

    Raises:
        ValueError: If a column does not have a value for each rollout.
    """
    for name, values in columns.items():
        if not values or len(values) % count:  # two reward functions may write one column: the last counts
            raise ValueError(
                f"A reward function wrote {len(values)} values into the column {name!r} with `log_extra`, for {count} "
                "completions. Give one for each, None where there is none."
            )
    return [{name: values[-count:][i] for name, values in columns.items()} for i in range(count)]


def total_reward(rewards: Iterable[float], weights: Iterable[float]) -> float:
    """Weighted sum of the rewards that are there, as TRL's, `nan` if none is."""
    there = [reward * weight for reward, weight in zip(rewards, weights, strict=True) if not math.isnan(reward)]
    return sum(there) if there else math.nan


def whole_groups(rollouts: list[Rollout], group_size: int, accelerator: Accelerator) -> list[Group]:
    """
    The groups of the local rollouts, completed by those that other processes hold.

    Groups lie side by side in the global generation batch, so one may begin on one process and end on the next. Only
    then do the processes exchange rollouts, and only those of such groups.

    Args:
        rollouts (`list[Rollout]`): The local ones, in order.
        group_size (`int`): Rollouts of one prompt.
        accelerator (`Accelerator`): Gathers from the other processes.
    """
    everyone = list(rollouts)
    if len(rollouts) % group_size:  # the same on every process
        head = -rollouts[0].index % group_size
        tail = (rollouts[-1].index + 1) % group_size
        parts = {r.index: r for r in rollouts[:head] + rollouts[max(len(rollouts) - tail, 0) :]}
        sent = [replace(rollout, environment=None, wanted=False) for rollout in parts.values()]
        own = {rollout.index for rollout in rollouts}
        groups = {rollout.group for rollout in rollouts}
        everyone += [r for r in gather_object(sent) if r.group in groups and r.index not in own]
        everyone.sort(key=lambda rollout: rollout.index)
    return [list(group) for _, group in itertools.groupby(everyone, key=lambda rollout: rollout.group)]
