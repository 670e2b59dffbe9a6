# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
One view name over a generation batch, as token ids.

Legend: B rows of the local generation batch, P longest teacher prompt of a view, C longest completion.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from trl.trainer.utils import pad

from trl_opsd.batches.pixels import Pixels


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
        dropped, shortened (`int`): Views that were too long.
    """

    prompt_ids: list[list[int]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    pixels: list[Pixels | None] = field(default_factory=list)
    live: bool = False
    dropped: int = 0
    shortened: int = 0

    def add(
        self, ids: list[int], weight: float, start: int, span: tuple[int, int], pixels: Pixels | None = None
    ) -> None:
        self.prompt_ids.append(ids)
        self.weights.append(float(weight))
        self.starts.append(start)
        self.spans.append(span)
        self.pixels.append(pixels)

    def tensors(
        self, name: str, width: int, pad_token_id: int, multiple: int | None, device: torch.device
    ) -> dict[str, Any]:
        """
        Batch keys of this view: ids and mask `(B, P)`, left-padded; weights and starts `(B,)`; taught tokens `(B, C)`;
        a list of B pixel tensors where some are not the student's.

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
        own = any(pixels is not None for pixels in self.pixels)
        return ({f"teacher_pixels/{name}": self.pixels} if own else {}) | {
            f"teacher_prompt_ids/{name}": pad(ids, padding_value=pad_token_id, **how).to(device),
            f"teacher_prompt_mask/{name}": pad(mask, padding_value=0, **how).to(device),
            f"teacher_weight/{name}": torch.tensor(self.weights, dtype=torch.float32, device=device),
            f"teacher_start/{name}": torch.tensor(self.starts, device=device),
            f"teacher_live/{name}": torch.tensor(self.live),
            f"taught_tokens/{name}": taught.to(device),
        }
