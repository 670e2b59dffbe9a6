# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Which teacher forwards a micro-batch takes, planned once the rollouts are there.

The plan needs two small collectives for a whole generation batch. With it every process runs the same forwards in the
same order, whatever its rows hold.

Legend: B rows of a micro-batch, K views, R rows that the teacher reads, P prompt tokens, C completion tokens.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator

from trl_opsd.batches.distillation_batch import KEY, DistillationBatch, Inputs
from trl_opsd.batches.encoded_view import ViewTensors
from trl_opsd.batches.pixels import ImageInputs, Pixels, check_ranks, rows_of_pixels
from trl_opsd.batches.teacher_batch import TeacherBatch


_MOST_VIEWS = 4  # in one forward: without gradient it needs less memory than the student's with one
_MAX_LENGTH_RATIO = 0.75  # views of one forward differ by at most this factor in the length of their prompts
_MIN_PREFIX_SAVING = 0.8  # a shared prefix must save a fifth of the tokens, as it splits one forward in two


def _shift_left(values: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Rows of `(R, C)` without their first `start` columns, and 0 where they end: `(R, C + 1)`."""
    values = torch.nn.functional.pad(values, (0, 1))
    column = torch.arange(values.shape[1], device=values.device) + start.unsqueeze(1)
    inside = column < values.shape[1]
    return values.gather(1, column.clamp(max=values.shape[1] - 1)) * inside


def _pixels_of(inputs: Inputs, view: ViewTensors) -> list[Pixels]:
    """Pixel tensors of the teacher in each of the B rows. The student's images are not copied."""
    student = rows_of_pixels(inputs)
    own = view.pixels or [None] * len(student)
    return [shared if pixels is None else pixels for pixels, shared in zip(own, student, strict=True)]


def _teacher_batch(inputs: Inputs, views: list[ViewTensors], images: ImageInputs | None) -> TeacherBatch:
    """The rows in which some views weigh something. Never empty, as every process runs the forward."""
    batch: DistillationBatch = inputs[KEY]
    taught = torch.stack([view.taught for view in views]) & batch.mask.bool()
    needed = taught.any(2) & (torch.stack([view.weight for view in views]) > 0)  # (K, B)
    if not needed.any():
        needed[0, 0] = True
    row_index = torch.full(needed.shape, -1, device=needed.device)
    row_index[needed] = torch.arange(int(needed.sum()), device=needed.device)
    view_of, row_of = needed.nonzero(as_tuple=True)

    ids, mask = _padded_prompts(views)
    ids, mask = ids[view_of, row_of], mask[view_of, row_of]
    width = int(mask.sum(1).max())
    both = torch.stack([ids * mask, mask], dim=-1)[:, -width:]  # what is under padding does not tell prompts apart
    distinct, prompt_of = both.unique(dim=0, return_inverse=True)

    start = torch.stack([view.start for view in views])  # (K, B)
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
        views=[view.name for view in views],
        width=inputs["completion_ids"].shape[1],
        row_index=row_index,
        start=start,
        prompt_ids=distinct[..., 0],
        prompt_mask=distinct[..., 1],
        prompt_of=prompt_of,
        completion_ids=completion_ids,
        completion_mask=completion_mask * read[:, :length],
        tokens=tokens if len(tokens) else tokens.new_zeros(1),
        pixels=[seen[view][row] for view, row in needed.nonzero().tolist()] if seen else [],
        images=images,
        live=bool(views[0].live),
    )


def _padded_prompts(views: list[ViewTensors]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of the prompts of some views, `(K, B, P)`, padded to the widest of them."""
    widest = max(view.prompt_ids.shape[1] for view in views)

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (widest - tensor.shape[1], 0))

    return tuple(torch.stack([padded(getattr(view, name)) for view in views]) for name in ("prompt_ids", "prompt_mask"))


def _group_views(names: list[str], widths: list[int], readers: list[tuple[bool, str]]) -> list[list[str]]:
    """Views that are read in one forward: of one reader, few enough, and of like lengths, so that padding is little."""
    groups: list[list[str]] = []
    widest, last = 0, None
    for reader, width, name in sorted(zip(readers, widths, names, strict=True), reverse=True):
        if not groups or len(groups[-1]) == _MOST_VIEWS or width < _MAX_LENGTH_RATIO * widest or reader != last:
            groups.append([])
            widest, last = width, reader
        groups[-1].append(name)
    return groups


def plan_teacher_batches(
    batches: list[Inputs],
    accelerator: Accelerator,
    may_share: Callable[[bool], bool],
    images: ImageInputs | None = None,
    uses: list[int] | None = None,
    weights_of: Callable[[str], str] = lambda view: "",
) -> None:
    """
    Plan the teacher's forwards of the micro-batches of a generation batch. A collective.

    Args:
        batches (`list[dict]`): Local micro-batches with their [`DistillationBatch`], whose `teacher_batches` are set.
        accelerator (`Accelerator`): Agrees with the other processes.
        may_share (`Callable[[bool], bool]`): From whether the student's own weights read a view, or the teacher's, to
            whether that reader can read a shared prompt once.
        images ([`~trl_opsd.batches.pixels.ImageInputs`], *optional*): What joins images.
        uses (`list[int]`, *optional*): Passes over each micro-batch that are still to come; one by default.
        weights_of (`Callable[[str], str]`, *optional*): From the name of a view to the key of the teacher's weights
            that read it, where it has several.
    """
    views = [batch[KEY].views for batch in batches]
    names = list(views[0])
    local = torch.tensor(
        [max(int(of_batch[name].prompt_mask.sum(1).max()) for of_batch in views) for name in names],
        device=accelerator.device,
    )
    widths = accelerator.gather(local).view(-1, len(names)).amax(0).tolist()
    live = [bool(view.live) for view in views[0].values()]
    readers = [(own, "" if own else weights_of(name)) for own, name in zip(live, names, strict=True)]
    groups = _group_views(names, widths, readers)
    for batch, of_batch, left in zip(batches, views, uses or [1] * len(batches), strict=True):
        batch[KEY].teacher_batches = [
            _teacher_batch(batch, [of_batch[name] for name in group], images) for group in groups
        ]
        for one in batch[KEY].teacher_batches:
            one.uses_left = left
    planned = [one for batch in batches for one in batch[KEY].teacher_batches]
    if images is not None:
        students = [any(rows_of_pixels(batch)) for batch in batches]
        check_ranks([*students, *(any(one.pixels) for one in planned)], accelerator)
    sharing = [one for one in planned if may_share(one.live)]
    if not sharing:
        return
    tokens = torch.tensor([one.costs() for one in sharing], device=accelerator.device)
    for one, (plain, shared) in zip(sharing, accelerator.reduce(tokens, reduction="sum").tolist(), strict=True):
        one.share_prefix = shared <= _MIN_PREFIX_SAVING * plain
