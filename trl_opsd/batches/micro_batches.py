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

from trl_opsd.batches.pixels import MODALITIES, TOKEN_TYPES


Batch = dict[str, Any]


def _select(batch: Batch, rows: torch.Tensor) -> Batch:
    """Some rows of a batch, in this order. What belongs to the whole batch (0-d, `None`) stays."""

    def chosen(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            return value[rows.to(value.device)]
        return [value[row] for row in rows.tolist()] if isinstance(value, list) else value

    return {name: chosen(value) for name, value in batch.items()}


def _joined(batches: list[Batch]) -> Batch:
    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], torch.Tensor) and values[0].ndim > 0:
            return torch.cat(values)
        return [item for value in values for item in value] if isinstance(values[0], list) else values[0]

    return {name: joined([batch[name] for batch in batches]) for name in batches[0]}


def _order(batch: Batch) -> torch.Tensor:
    """Row numbers: idle rows last, rows that share their teachers' prompts side by side, then by length."""
    prompts = [value.tolist() for name, value in batch.items() if name.startswith("teacher_prompt_ids/")]
    lengths = (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).tolist()
    idle = (~batch["distillation_mask"].any(1)).tolist()
    keys = [str(row) for row in zip(*prompts, strict=True)]
    longest: dict[str, int] = {}
    for key, length in zip(keys, lengths, strict=True):
        longest[key] = max(longest.get(key, 0), length)
    rows = sorted(range(len(keys)), key=lambda row: (idle[row], -longest[keys[row]], keys[row], -lengths[row]))
    return torch.tensor(rows)


def sort_by_length(batches: list[Batch], window: int) -> list[Batch]:
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


def without_idle_rows(batch: Batch) -> Batch:
    """The rows with a distilled token, or one row where there is none, as every rank runs the forward."""
    rows = batch["distillation_mask"].any(1).nonzero().squeeze(1)
    if len(rows) == len(batch["distillation_mask"]):
        return batch
    return _select(batch, rows if len(rows) else torch.zeros(1, dtype=torch.long))


def _rounded(width: int, multiple: int | None) -> int:
    return max(width if not multiple else -(-width // multiple) * multiple, 1)


def trim_padding(batch: Batch, multiple: int | None = None) -> Batch:
    """
    Cut the columns that are padding in every row: of prompts on the left, of completions on the right.

    Args:
        batch (`dict`): Micro-batch with the keys of TRL's and the distillation mask.
        multiple (`int`, *optional*): `pad_to_multiple_of`, which the widths keep.
    """
    prompt = _rounded(int(batch["prompt_mask"].sum(1).max()), multiple)
    width = batch["completion_mask"].shape[1]
    completion = _rounded(int(batch["completion_mask"].sum(1).max()), multiple)

    def cut(name: str, value: Any) -> Any:
        if name in TOKEN_TYPES:  # of prompt and completion
            return value[:, value.shape[1] - width - prompt : value.shape[1] - width + completion]
        if name in MODALITIES:
            return value
        if name.startswith("prompt_") and isinstance(value, torch.Tensor):
            return value[:, -prompt:]
        per_token = isinstance(value, torch.Tensor) and value.ndim == 2 and value.shape[1] == width
        return value[:, :completion] if per_token and not name.startswith("teacher_") else value

    return {name: cut(name, value) for name, value in batch.items()}


def repack_micro_batches(
    batches: list[Batch], window: int | None, drop_idle: bool, multiple: int | None
) -> list[Batch]:
    """
    All of the above.

    Args:
        batches (`list[dict]`): The micro-batches of a generation batch.
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
    return [trim_padding(unsplit_pixel_values_by_grid(batch), multiple) for batch in batches]
