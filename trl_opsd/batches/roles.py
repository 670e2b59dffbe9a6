# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Roles of rows under `turns`, and how many rows and tokens of each a generation batch has.

Legend: B rows, C completion tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from trl_opsd.rollouts.rollout import ROLES


_ROLE, _ROWS, _TOKENS, _DISTILLED = "role", "role_rows/", "role_tokens/", "role_distilled"


@dataclass(frozen=True)
class Roles:
    """
    Roles of the rows of a batch.

    Args:
        role (`torch.Tensor` of shape `(B,)`): Number of each row's role in `ROLES`.
        rows, tokens (`dict[str, torch.Tensor]`): Rows of each role in the generation batch, and their trained tokens,
            over all processes, 0-d.
        distilled (`torch.Tensor`): Tokens that a view teaches, by which the factor `scale` of a method divides, 0-d.
        loss_type (`str`): `loss_type` of GRPO.
    """

    role: torch.Tensor
    rows: dict[str, torch.Tensor]
    tokens: dict[str, torch.Tensor]
    distilled: torch.Tensor
    loss_type: str = "dapo"

    @classmethod
    def gather(
        cls, roles: list[str], loss_mask: torch.Tensor, distilled: torch.Tensor, accelerator: Accelerator
    ) -> "Roles":
        """
        Count over all processes. A collective.

        Args:
            roles (`list[str]` of length B): Role of each local row.
            loss_mask (`torch.Tensor` of shape `(B, C)`): 1 at all tokens that are trained.
            distilled (`torch.Tensor`): Distilled tokens of all processes, 0-d.
            accelerator (`Accelerator`): Sums over processes.
        """
        number = torch.tensor([ROLES.index(one) for one in roles], device=loss_mask.device)
        of_role = torch.nn.functional.one_hot(number, len(ROLES))  # (B, R)
        local = torch.stack([of_role.sum(0), (of_role * loss_mask.sum(1, keepdim=True)).sum(0)]).float()
        rows, tokens = accelerator.reduce(local, reduction="sum")
        return cls(number, dict(zip(ROLES, rows, strict=True)), dict(zip(ROLES, tokens, strict=True)), distilled)

    def flat(self) -> dict[str, Any]:
        """Values of which [`taken`] makes the same, each a row of the batch or 0-d."""
        rows = {f"{_ROWS}{name}": value for name, value in self.rows.items()}
        tokens = {f"{_TOKENS}{name}": value for name, value in self.tokens.items()}
        return {_ROLE: self.role, _DISTILLED: self.distilled} | rows | tokens

    @classmethod
    def taken(cls, keys: dict[str, Any], prefix: str) -> "Roles | None":
        """Roles whose values [`flat`] put into a dict under a prefix; `None` in a run without turns."""
        if prefix + _ROLE not in keys:
            return None
        rows, tokens = ({name: keys[prefix + part + name] for name in ROLES} for part in (_ROWS, _TOKENS))
        return cls(keys[prefix + _ROLE], rows, tokens, keys[prefix + _DISTILLED])

    def rows_of(self, name: str) -> torch.Tensor:
        """Whether each row has a role, `(B, 1)`."""
        return (self.role == ROLES.index(name)).unsqueeze(1)

    def token_scale(self, name: str) -> torch.Tensor:
        """Distilled tokens over the tokens of a role, 0-d."""
        return self._share(name, self.tokens)

    def row_scale(self, name: str) -> torch.Tensor:
        """Distilled tokens over the rows of a role, 0-d."""
        return self._share(name, self.rows)

    def _share(self, name: str, counts: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.loss_type != "dapo":
            raise ValueError(
                f"The method scales the tokens of a role, for which `loss_type` must be 'dapo', not {self.loss_type!r}."
            )
        return self.distilled / counts[name].clamp(min=1.0)
