# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Inputs of one teacher forward: only rows with a view, several views at once, and each prompt that rows share once.

Legend: B rows of a micro-batch, R rows that the teacher reads, U distinct prompts, P prompt tokens, C completion
tokens, T distilled tokens of the R rows.
"""

from dataclasses import dataclass

import torch

from trl_opsd.batches.pixels import ImageInputs, Pixels


Outputs = tuple[torch.Tensor, ...]


@dataclass(eq=False)  # a key of the outputs that are kept
class TeacherBatch:
    """
    Inputs of one teacher forward, over some views of a micro-batch.

    Args:
        views (`list[str]`): The views it is for.
        width (`int`): C, tokens of a row of the micro-batch.
        row_index (`torch.Tensor` of shape `(len(views), B)`): Row among the R of
            each view's row, -1 where there is none.
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
        uses_left (`int`): Passes over the micro-batch that are still to come.
    """

    views: list[str]
    width: int
    row_index: torch.Tensor
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
    uses_left: int = 1

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
        Outputs of the teacher at some tokens of the micro-batch, `(M, ...)`; anything where a row lacks the view.

        Args:
            values (`torch.Tensor` of shape `(T, ...)`): At `tokens`.
            view (`str`): Name of the view.
            index (`torch.Tensor` of shape `(M,)`): Tokens, counted along the rows of the micro-batch, `(B, C)`.
        """
        length, view_index = self.completion_ids.shape[1], self.views.index(view)
        position = torch.zeros(self.completion_ids.numel(), dtype=torch.long, device=self.tokens.device)
        position[self.tokens] = torch.arange(len(self.tokens), device=self.tokens.device)
        own_row = index // self.width
        row = self.row_index[view_index][own_row].clamp(min=0)
        column = (index % self.width - self.start[view_index][own_row]).clamp(0, length - 1)
        return values[position[row * length + column].to(values.device)]
