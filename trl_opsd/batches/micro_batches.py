# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Micro-batches that waste little: rows of like length together, no padding that all rows share, no rows without a loss.

TRL pads to the longest row of the whole generation batch and shuffles its rows. Within one optimizer step their order
changes nothing but how much padding a micro-batch holds.

Legend: B rows of a micro-batch, P prompt tokens, C completion tokens.
"""

from typing import Any

import torch
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from trl_opsd.batches.distillation_batch import MASK, PROMPT_IDS, TAUGHT, DistillationBatch, Inputs
from trl_opsd.batches.pixels import TOKEN_TYPES


_OF_PROMPTS = ("prompt_ids", "prompt_mask")
# Of TRL, `(B, C)`, but for a ratio of whole completions, `(B, 1)`
_OF_COMPLETIONS = (
    "completion_ids", "completion_mask", "tool_mask", "old_per_token_logps", "ref_per_token_logps",
    "sampling_per_token_logps", "importance_sampling_ratio", MASK,
)  # fmt: skip


def _select(batch: Inputs, rows: torch.Tensor) -> Inputs:
    """Some rows of a batch, in this order. What belongs to the whole batch (0-d, `None`) stays."""

    def chosen(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            return value[rows.to(value.device)]
        return [value[row] for row in rows.tolist()] if isinstance(value, list) else value

    return {name: chosen(value) for name, value in batch.items()}


def _joined(batches: list[Inputs]) -> Inputs:
    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], torch.Tensor) and values[0].ndim > 0:
            return torch.cat(values)
        return [item for value in values for item in value] if isinstance(values[0], list) else values[0]

    return {name: joined([batch[name] for batch in batches]) for name in batches[0]}


def _order(batch: Inputs) -> torch.Tensor:
    """Row numbers: idle rows last, rows that share their teachers' prompts side by side, then by length."""
    prompts = [value.tolist() for name, value in batch.items() if name.startswith(PROMPT_IDS)]
    lengths = (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).tolist()
    idle = (~batch[MASK].any(1)).tolist()
    keys = [str(row) for row in zip(*prompts, strict=True)]
    longest: dict[str, int] = {}
    for key, length in zip(keys, lengths, strict=True):
        longest[key] = max(longest.get(key, 0), length)
    rows = sorted(range(len(keys)), key=lambda row: (idle[row], -longest[keys[row]], keys[row], -lengths[row]))
    return torch.tensor(rows)


def sort_by_length(batches: list[Inputs], window: int) -> list[Inputs]:
    """
    Deal the rows of each optimizer step to its micro-batches anew.

    Args:
        batches (`list[dict]`): Micro-batches of equal size.
        window (`int`): Micro-batches of an optimizer step; the last window may have fewer.
    """
    ordered = []
    for start in range(0, len(batches), window):
        part = batches[start : start + window]
        joined = _joined(part)
        ordered += [_select(joined, rows) for rows in _order(joined).chunk(len(part))]
    return ordered


def without_idle_rows(batch: Inputs) -> Inputs:
    """The rows with a distilled token, or one row where there is none, as every rank runs the forward."""
    rows = batch[MASK].any(1).nonzero().squeeze(1)
    if len(rows) == len(batch[MASK]):
        return batch
    return _select(batch, rows if len(rows) else torch.zeros(1, dtype=torch.long))


def _rounded(width: int, multiple: int | None) -> int:
    return max(width if not multiple else -(-width // multiple) * multiple, 1)


def trim_padding(batch: Inputs, multiple: int | None = None) -> Inputs:
    """
    Cut the columns that are padding in every row: of prompts on the left, of completions on the right.

    Args:
        batch (`dict`): Micro-batch with TRL's keys and the flat keys of the distillation term.
        multiple (`int`, *optional*): `pad_to_multiple_of`, which the widths keep.
    """
    prompt = _rounded(int(batch["prompt_mask"].sum(1).max()), multiple)
    width = batch["completion_mask"].shape[1]
    completion = _rounded(int(batch["completion_mask"].sum(1).max()), multiple)

    def cut(name: str, value: Any) -> Any:
        if value is None:
            return value
        if name in _OF_PROMPTS:
            return value[:, -prompt:]
        if name in _OF_COMPLETIONS or name.startswith(TAUGHT):
            return value[:, :completion]
        if name in TOKEN_TYPES:  # of prompt and completion
            return value[:, value.shape[1] - width - prompt : value.shape[1] - width + completion]
        return value

    return {name: cut(name, value) for name, value in batch.items()}


def repack_micro_batches(
    batches: list[Inputs], window: int | None, drop_idle: bool, multiple: int | None
) -> list[Inputs]:
    """
    Re-pack the micro-batches of a generation batch: sort rows by length within each optimizer step, drop rows without a
    loss, trim padding that all rows share, and type what the distillation term adds.

    Args:
        batches (`list[dict]`): The micro-batches, with the flat keys of the distillation term.
        window (`int` or `None`): Micro-batches of an optimizer step, or `None` if rows must stay where they are.
        drop_idle (`bool`): Whether rows without a distilled token train nothing.
        multiple (`int` or `None`): `pad_to_multiple_of`.
    """
    batches = [split_pixel_values_by_grid(batch) for batch in batches]
    # Whole steps lie in the buffer, or it lies in one step; else a row would change its step
    if window is not None and (len(batches) % window == 0 or window % len(batches) == 0):
        batches = sort_by_length(batches, window)
    if drop_idle:
        batches = [without_idle_rows(batch) for batch in batches]
    batches = [trim_padding(unsplit_pixel_values_by_grid(batch), multiple) for batch in batches]
    return [DistillationBatch.take(batch) for batch in batches]
