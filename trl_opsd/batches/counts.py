# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Normalisers of the loss: how many rows and tokens there are, and what each mean divides by.

Legend: B rows, C completion tokens.
"""

from dataclasses import dataclass, fields

import torch
from accelerate import Accelerator


# `loss_type`s of GRPO that average over the rows of a micro-batch, those without a loss too
ROW_LOSS_TYPES = ("grpo", "sapo", "luspo", "dr_grpo")


@dataclass(frozen=True)
class Counts:
    """
    Rows and tokens of a generation batch over all processes, like TRL's `num_items_in_batch`: 0-d float tensors.

    Args:
        distilled_tokens (`torch.Tensor`): Tokens that a view teaches.
        distilled_rows (`torch.Tensor`): Rows with such a token.
        tokens (`torch.Tensor`): Tokens that the model wrote and that are trained.
        rows (`torch.Tensor`): All rows, also those without a token to train.
    """

    distilled_tokens: torch.Tensor
    distilled_rows: torch.Tensor
    tokens: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def gather(cls, mask: torch.Tensor, loss_mask: torch.Tensor, accelerator: Accelerator) -> "Counts":
        """
        Count over all processes. A collective.

        Args:
            mask (`torch.Tensor` of shape `(B, C)`): 1 at distilled tokens.
            loss_mask (`torch.Tensor` of shape `(B, C)`): 1 at all tokens that the model wrote.
            accelerator (`Accelerator`): Sums over processes.
        """
        rows = torch.tensor(len(mask), device=mask.device)
        local = torch.stack([mask.sum(), mask.any(1).sum(), loss_mask.sum(), rows]).float()
        return cls(*accelerator.reduce(local, reduction="sum"))

    def token_weights(self, mask: torch.Tensor, reduction: str, parts: float) -> torch.Tensor:
        """
        Weight of each token in the distillation loss, `(B, C)`, so that the loss is a plain weighted sum.

        Only distilled tokens and rows are counted, so that rows without a view dilute nothing, unless `reduction` is
        `"joint_token_mean"`.

        Args:
            mask (`torch.Tensor` of shape `(B, C)`): 1 at distilled tokens.
            reduction (`str`): `distillation_reduction`.
            parts (`float`): Into how many equal losses the batch is divided: the accumulation windows in it, times the
                processes, over which the gradient is averaged.
        """
        mask = mask.float()
        if reduction == "sequence_mean":
            mask = mask / mask.sum(1, keepdim=True).clamp(min=1.0)
        return mask / (self.averaged(reduction) / parts).clamp(min=1.0)

    def averaged(self, reduction: str) -> torch.Tensor:
        """Number, 0-d, of the rows or tokens that the mean of a `distillation_reduction` runs over."""
        if reduction == "sequence_mean":
            return self.distilled_rows
        return self.tokens if reduction == "joint_token_mean" else self.distilled_tokens

    def dilution(self, loss_type: str, num_items: torch.Tensor) -> torch.Tensor:
        """
        Factor, 0-d, that turns the mean of TRL's policy loss, over all rows or tokens, into one over the distilled rows
        or tokens.

        Args:
            loss_type (`str`): `loss_type` of GRPO, which says what TRL divides by.
            num_items (`torch.Tensor`): TRL's `num_items_in_batch`, 0-d, by which the other loss types divide.
        """
        number = self.tokens if loss_type == "bnpo" else num_items
        if loss_type in ROW_LOSS_TYPES:
            number = self.rows
        return number / self.distilled_of_policy(loss_type).clamp(min=1.0)

    def distilled_of_policy(self, loss_type: str) -> torch.Tensor:
        """Number, 0-d, of the distilled rows, or tokens where TRL's policy loss is a mean over tokens."""
        return self.distilled_rows if loss_type in ROW_LOSS_TYPES else self.distilled_tokens


COUNTS = tuple(field.name for field in fields(Counts))
