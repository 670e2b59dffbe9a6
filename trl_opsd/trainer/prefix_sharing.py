# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Prefix sharing of a run: which readers read a prompt that rows share once.

A reader is a model with its adapter: the teacher, or the student for `live` views. Each is asked what it can, and its
first such read is compared with a plain one.
"""

import math
import warnings
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import nn

from trl_opsd.batches.teacher_batch import TeacherBatch
from trl_opsd.model.evaluation import rounding_step
from trl_opsd.model.forward import TeacherRequest
from trl_opsd.model.shared_prefix import can_share_prefix


# Share of a hidden state by which it may change for nine tokens of ten, as routers of experts may turn by rounding: so
# many steps of its type, and so much in any case
_QUANTILE, _STEPS, _LEAST = 0.9, 16, 1e-2


class PrefixSharing:
    """
    Readers that read a shared prompt once.

    Args:
        student, teacher (`nn.Module`): The readers before any wrapping, with their PEFT wrappers if they have some.
        wanted (`bool`): `teacher_share_prefix`.
        accelerator (`Accelerator`): Agrees with the other processes.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, wanted: bool, accelerator: Accelerator):
        self.accelerator = accelerator
        self._readers = {True: student, False: teacher}
        self._allowed = {live: wanted and can_share_prefix(reader) for live, reader in self._readers.items()}
        self._checked: set[bool] = set()

    def allowed(self, live: bool) -> bool:
        """Whether the reader of `live` views, or else the teacher, may read a shared prompt once."""
        return self._allowed[live]

    @torch.no_grad()
    def check(self, model: nn.Module, batch: TeacherBatch) -> None:
        """
        Compare the first shared read of a reader with a plain one of the same rows. If they differ by more than
        rounding explains, it reads no shared prompts any more, this one included. A collective.

        Args:
            model (`nn.Module`): The wrapped reader, within its forward context.
            batch ([`TeacherBatch`]): What it is about to read.
        """
        if batch.share_prefix and batch.live not in self._checked:
            self._checked.add(batch.live)
            self._allowed[batch.live] = self._agrees(model, batch)
        batch.share_prefix &= self._allowed[batch.live]

    def _agrees(self, model: nn.Module, batch: TeacherBatch) -> bool:
        shared, plain = (self._hidden(model, batch, share) for share in (True, False))
        largest = max(_STEPS * rounding_step(self._readers[batch.live], shared), _LEAST)
        change = (shared.float() - plain.float()).norm(dim=-1) / plain.float().norm(dim=-1)
        # The largest of all processes, which decide alike
        change = self.accelerator.gather(change.quantile(_QUANTILE).to(self.accelerator.device).view(1)).max().item()
        if change <= largest or math.isnan(change):
            return True
        if self.accelerator.is_main_process:
            warnings.warn(
                f"{'The student' if batch.live else 'The teacher'} reads rows otherwise after a prompt that they share "
                f"than one by one (its hidden states change by {change:.1%}), so each row reads its prompt itself from "
                "now on. `teacher_share_prefix=False` does so from the start.",
                stacklevel=2,
            )
        return False

    @staticmethod
    def _hidden(model: nn.Module, batch: TeacherBatch, share: bool) -> torch.Tensor:
        """Hidden states at the batch's tokens, `(T, H)`."""
        request = TeacherRequest(replace(batch, share_prefix=share))
        return model(**request.model_inputs(), distillation=request)()[0]
