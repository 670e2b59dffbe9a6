# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
What the teacher reads for a micro-batch: only rows with a view, several views at once, and each prompt that rows share
once.

Everything here is planned when the rollouts are there, with two small collectives for a whole generation batch, so that
every rank runs the same forwards in the same order, whatever its rows hold.

Legend: B rows of a micro-batch, K views, R rows that the teacher reads, U distinct prompts, P prompt tokens, C
completion tokens, H hidden size.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from trl_opsd.batches.pixels import ImageInputs, Pixels, check_ranks, rows_of_pixels


Batch = dict[str, Any]

_MOST_VIEWS = 4  # in one forward: without gradient it needs less memory than the student's with one
_MAX_LENGTH_RATIO = 0.75  # views of one forward differ by at most this factor in the length of their prompts
_MIN_PREFIX_SAVING = 0.8  # a shared prefix must save a fifth of the tokens, as it splits one forward in two


def view_names(inputs: Batch) -> list[str]:
    """Names of the views in a batch, the same on every rank."""
    return [key.split("/", 1)[1] for key in inputs if key.startswith("teacher_weight/")]


def is_live(inputs: Batch, view: str) -> bool:
    """Whether the student's own weights read a view."""
    return bool(inputs[f"teacher_live/{view}"])


def view_weights(inputs: Batch) -> torch.Tensor:
    """Weight of each view at each token, `(K, B, C)`, 0 where it may not teach the token."""
    names = view_names(inputs)
    return torch.stack(
        [inputs[f"teacher_weight/{name}"].unsqueeze(1) * inputs[f"taught_tokens/{name}"] for name in names]
    )


@dataclass
class TeacherBatch:
    """
    One teacher forward.

    Args:
        views (`list[str]`): The views it is for.
        width (`int`): C, tokens of a row of the micro-batch.
        place (`torch.Tensor` of shape `(len(views), B)`): Row among the R of each view's row, -1 where there is none.
        start (`torch.Tensor` of shape `(len(views), B)`): Tokens of the completion that belong to the prompt.
        prompt_ids, prompt_mask (`torch.Tensor` of shape `(U, P)`): Distinct prompts, left-padded.
        prompt_of (`torch.Tensor` of shape `(R,)`): Prompt of each row.
        completion_ids, completion_mask (`torch.Tensor` of shape `(R, C')`): The student's own completions from `start`
            to the last token that is taught.
        tokens (`torch.Tensor` of shape `(T,)`): Distilled tokens, counted along the R rows, never none.
        pixels (`list[dict[str, torch.Tensor]]` of length R): Pixel tensors of each row, empty for a row without image.
        images ([`~trl_opsd.batches.pixels.ImageInputs`], *optional*): What joins them.
        live (`bool`): Whether the student's own weights read it.
        share_prefix (`bool`): Whether distinct prompts are read once, then the completions.
        answer (`Any`): What the teacher said, kept for as long as its weights stand still, with their version.
    """

    views: list[str]
    width: int
    place: torch.Tensor
    start: torch.Tensor
    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    prompt_of: torch.Tensor
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    tokens: torch.Tensor
    pixels: list[Pixels]
    images: ImageInputs | None = None
    live: bool = False
    share_prefix: bool = False
    answer: tuple[Any, Any] | None = field(default=None, repr=False)

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """Inputs of a run over prompts and completions, `(R, P + C)`."""
        prompt_ids, prompt_mask = self.prompt_ids[self.prompt_of], self.prompt_mask[self.prompt_of]
        input_ids = torch.cat([prompt_ids, self.completion_ids], dim=1)
        attention_mask = torch.cat([prompt_mask, self.completion_mask], dim=1)
        seen = {} if self.images is None else self.images.model_inputs(self.pixels, input_ids)
        return {"input_ids": input_ids, "attention_mask": attention_mask, **seen}

    def costs(self) -> tuple[int, int]:
        """Tokens of a run over prompts and completions, and of one with shared prompts."""
        prompts, length = self.prompt_ids.shape
        rows, completion = self.completion_ids.shape
        return rows * (length + completion), prompts * length + rows * completion

    def values_at(self, values: torch.Tensor, view: str, index: torch.Tensor) -> torch.Tensor:
        """
        What the teacher said at some tokens of the micro-batch, `(M, ...)`; anything where a row lacks the view.

        Args:
            values (`torch.Tensor` of shape `(T, ...)`): At `tokens`.
            view (`str`): Name of the view.
            index (`torch.Tensor` of shape `(M,)`): Tokens, counted along the rows of the micro-batch, `(B, C)`.
        """
        length, view_index = self.completion_ids.shape[1], self.views.index(view)
        position = torch.zeros(self.completion_ids.numel(), dtype=torch.long, device=self.tokens.device)
        position[self.tokens] = torch.arange(len(self.tokens), device=self.tokens.device)
        own_row = index // self.width
        row = self.place[view_index][own_row].clamp(min=0)
        column = (index % self.width - self.start[view_index][own_row]).clamp(0, length - 1)
        return values[position[row * length + column].to(values.device)]


def _shift_left(values: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Rows of `(R, C)` without their first `start` columns, and 0 where they end: `(R, C + 1)`."""
    values = torch.nn.functional.pad(values, (0, 1))
    column = torch.arange(values.shape[1], device=values.device) + start.unsqueeze(1)
    inside = column < values.shape[1]
    return values.gather(1, column.clamp(max=values.shape[1] - 1)) * inside


def _pixels_of(inputs: Batch, view: str) -> list[Pixels]:
    """What the teacher sees in each of the B rows. The student's images are not copied."""
    student = rows_of_pixels(inputs)
    own = inputs.get(f"teacher_pixels/{view}", [None] * len(student))
    return [shared if pixels is None else pixels for pixels, shared in zip(own, student, strict=True)]


def _teacher_batch(inputs: Batch, views: list[str], images: ImageInputs | None) -> TeacherBatch:
    """The rows of some views that weigh something. Never empty: every rank runs the forward."""
    taught = torch.stack([inputs[f"taught_tokens/{view}"] for view in views]) & inputs["distillation_mask"].bool()
    needed = taught.any(2) & (torch.stack([inputs[f"teacher_weight/{view}"] for view in views]) > 0)  # (K, B)
    if not needed.any():
        needed[0, 0] = True
    count = needed.sum()
    place = torch.full(needed.shape, -1, device=needed.device)
    place[needed] = torch.arange(int(count), device=needed.device)
    view_of, row_of = needed.nonzero(as_tuple=True)

    widest = max(inputs[f"teacher_prompt_ids/{view}"].shape[1] for view in views)
    ids, mask = (
        torch.stack(
            [torch.nn.functional.pad(inputs[f"teacher_prompt_{part}/{view}"], (widest - width, 0))
             for view in views
             for width in [inputs[f"teacher_prompt_{part}/{view}"].shape[1]]]
        )[view_of, row_of]
        for part in ("ids", "mask")
    )  # fmt: skip
    width = int(mask.sum(1).max())
    both = torch.stack([ids * mask, mask], dim=-1)[:, -width:]  # what is under padding does not tell prompts apart
    distinct, prompt_of = both.unique(dim=0, return_inverse=True)

    start = torch.stack([inputs[f"teacher_start/{view}"] for view in views])  # (K, B)
    own_start = start[view_of, row_of]
    taught = _shift_left(taught[view_of, row_of], own_start)
    # What comes after the last taught token says nothing about those before it
    read = taught.flip(1).cumsum(1).flip(1) > 0
    length = max(int(read.sum(1).max()), 2)  # a shared prompt takes two runs, for which one token is not enough
    completion_ids, completion_mask = (
        _shift_left(inputs[f"completion_{part}"][row_of], own_start)[:, :length] for part in ("ids", "mask")
    )
    tokens = taught[:, :length].flatten().nonzero().squeeze(1)
    seen = [] if images is None else [_pixels_of(inputs, view) for view in views]
    return TeacherBatch(
        views=views,
        width=inputs["completion_ids"].shape[1],
        place=place,
        start=start,
        prompt_ids=distinct[..., 0],
        prompt_mask=distinct[..., 1],
        prompt_of=prompt_of,
        completion_ids=completion_ids,
        completion_mask=completion_mask * read[:, :length],
        tokens=tokens if len(tokens) else tokens.new_zeros(1),
        pixels=[seen[view][row] for view, row in needed.nonzero().tolist()] if seen else [],
        images=images,
        live=is_live(inputs, views[0]),
    )


def _group_views(names: list[str], widths: list[int], live: list[bool]) -> list[list[str]]:
    """Views that are read in one forward: of one reader, few enough, and of like lengths, so that padding is little."""
    packs: list[list[str]] = []
    widest, reader = 0, None
    for is_live, width, name in sorted(zip(live, widths, names, strict=True), reverse=True):
        if not packs or len(packs[-1]) == _MOST_VIEWS or width < _MAX_LENGTH_RATIO * widest or is_live != reader:
            packs.append([])
            widest, reader = width, is_live
        packs[-1].append(name)
    return packs


def add_teacher_batches(
    batches: list[Batch], accelerator: Accelerator, may_share: bool, images: ImageInputs | None = None
) -> None:
    """
    Plan the teacher's forwards of the micro-batches of a generation batch, under the key `teacher_batches` of each.

    Args:
        batches (`list[dict]`): Local micro-batches, with the keys of their views.
        accelerator (`Accelerator`): Agrees with the other ranks.
        may_share (`bool`): Whether the teacher can read a shared prompt once.
        images ([`~trl_opsd.batches.pixels.ImageInputs`], *optional*): What joins images.
    """
    names = view_names(batches[0])
    local = torch.tensor(
        [max(int(batch[f"teacher_prompt_mask/{name}"].sum(1).max()) for batch in batches) for name in names],
        device=accelerator.device,
    )
    widths = accelerator.gather(local).view(-1, len(names)).amax(0).tolist()
    packs = _group_views(names, widths, [is_live(batches[0], name) for name in names])
    for batch in batches:
        batch["teacher_batches"] = [_teacher_batch(batch, views, images) for views in packs]
    if images is not None:
        students = [any(rows_of_pixels(batch)) for batch in batches]
        check_ranks(
            [*students, *(any(one.pixels) for batch in batches for one in batch["teacher_batches"])], accelerator
        )
    if not may_share:
        return
    planned = [one for batch in batches for one in batch["teacher_batches"]]
    tokens = torch.tensor([one.costs() for one in planned], device=accelerator.device)
    for one, (plain, shared) in zip(planned, accelerator.reduce(tokens, reduction="sum").tolist(), strict=True):
        one.share_prefix = shared <= _MIN_PREFIX_SAVING * plain
