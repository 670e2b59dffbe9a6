# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The token ids of one view name over a batch: as lists when they are encoded, then as padded tensors.

Legend: B rows, P longest teacher prompt of the view, C longest completion.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from trl.trainer.utils import pad

from trl_opsd.batches.pixels import Pixels


# Flat keys of a view while TRL shuffles and splits a generation batch: PREFIX + field + "/" + name of the view
VIEW_PREFIX = "distillation/views/"
_FIELDS = ("prompt_ids", "prompt_mask", "weight", "start", "taught", "live", "pixels")


@dataclass
class EncodedView:
    """
    One view name over the local generation batch.

    Args:
        prompt_ids (`list[list[int]]` of length B): What the teacher reads before the tokens that it scores: its prompt
            and, where the context stands within the completion, what comes before that. The student's own prompt where
            a row lacks the view, so that its forward runs on sound input.
        weights (`list[float]` of length B): Weight of the view in each row, 0 where the row lacks it.
        starts (`list[int]` of length B): Tokens of the completion that are in `prompt_ids`.
        spans (`list[tuple[int, int]]` of length B): Tokens of the completion that the view may teach.
        pixels (`list[dict[str, torch.Tensor] | None]` of length B): Pixel tensors that the teacher reads, empty where
            it reads no image. `None` for the student's own images.
        live (`bool`): Whether the student's own weights read it.
        dropped, shortened (`int`): Views that were left out or shortened, as one of their bundle was too long.
    """

    prompt_ids: list[list[int]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    pixels: list[Pixels | None] = field(default_factory=list)
    live: bool = False
    dropped: int = 0
    shortened: int = 0

    def add(self, ids: list[int], weight: float, start: int, span: tuple[int, int], pixels: Pixels | None) -> None:
        """Add a row; the arguments are those of the class."""
        self.prompt_ids.append(ids)
        self.weights.append(weight)
        self.starts.append(start)
        self.spans.append(span)
        self.pixels.append(pixels)

    def add_none(self, prompt_ids: list[int]) -> None:
        """Add a row that lacks the view, whose student read `prompt_ids`."""
        self.add(prompt_ids, 0.0, 0, (0, 0), None)

    def leave_out(self, row: int, prompt_ids: list[int]) -> None:
        """Take the view from a row, whose student read `prompt_ids`."""
        self.prompt_ids[row], self.weights[row], self.starts[row] = prompt_ids, 0.0, 0
        self.spans[row], self.pixels[row] = (0, 0), None

    def tensors(
        self, name: str, width: int, pad_token_id: int, multiple: int | None, device: torch.device
    ) -> "ViewTensors":
        """
        The view as padded tensors.

        Args:
            name (`str`): Its name.
            width (`int`): C.
            pad_token_id (`int`): Padding of the ids.
            multiple (`int`, *optional*): `pad_to_multiple_of`.
            device (`torch.device`): Where to.
        """
        ids = [torch.tensor(row) for row in self.prompt_ids]
        mask = [torch.ones_like(row) for row in ids]
        how = {"padding_side": "left", "pad_to_multiple_of": multiple}
        column = torch.arange(width)
        taught = torch.stack([(column >= start) & (column < end) for start, end in self.spans])
        return ViewTensors(
            name=name,
            prompt_ids=pad(ids, padding_value=pad_token_id, **how).to(device),
            prompt_mask=pad(mask, padding_value=0, **how).to(device),
            weight=torch.tensor(self.weights, dtype=torch.float32, device=device),
            start=torch.tensor(self.starts, device=device),
            taught=taught.to(device),
            live=torch.tensor(self.live),
            pixels=self.pixels if any(pixels is not None for pixels in self.pixels) else None,
        )


@dataclass
class ViewTensors:
    """
    One view name over a batch.

    Args:
        name (`str`): Its name.
        prompt_ids, prompt_mask (`torch.Tensor` of shape `(B, P)`): What the teacher reads before the tokens that it
            scores, left-padded.
        weight (`torch.Tensor` of shape `(B,)`): Weight of the view in each row, 0 where the row lacks it.
        start (`torch.Tensor` of shape `(B,)`): Tokens of the completion that are in `prompt_ids`.
        taught (`torch.Tensor` of shape `(B, C)`): Whether the view may teach a token.
        live (`torch.Tensor`, 0-d): Whether the student's own weights read it.
        pixels (`list[dict[str, torch.Tensor] | None]` of length B, *optional*): As in [`EncodedView`]; `None` where all
            are the student's own.
    """

    name: str
    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    weight: torch.Tensor
    start: torch.Tensor
    taught: torch.Tensor
    live: torch.Tensor
    pixels: list[Pixels | None] | None = None

    def flat(self) -> dict[str, Any]:
        """The values under flat keys, which TRL can shuffle and split by their first dimension."""
        values = {field: getattr(self, field) for field in _FIELDS}
        return {f"{VIEW_PREFIX}{field}/{self.name}": value for field, value in values.items() if value is not None}


def views_of(keys: dict[str, Any]) -> dict[str, ViewTensors]:
    """The views by name whose values [`ViewTensors.flat`] put into a dict, in their order there."""
    marker = f"{VIEW_PREFIX}weight/"
    names = [key.removeprefix(marker) for key in keys if key.startswith(marker)]
    return {
        name: ViewTensors(name, **{field: keys.get(f"{VIEW_PREFIX}{field}/{name}") for field in _FIELDS})
        for name in names
    }
