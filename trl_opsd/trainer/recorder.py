# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Metrics of the trained tokens, and their mean gap in the table of completions."""

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from trl_opsd.batches.distillation_batch import DistillationBatch
from trl_opsd.monitoring.metrics import LoggedSums, Number, Sums, mean_gaps, reduce_sums, token_sums
from trl_opsd.monitoring.names import PREFIX


class Recorder(LoggedSums):
    """
    Makes what is logged of a micro-batch, and keeps its sums until the next log.

    Args:
        accelerator (`Accelerator`): Reduces over processes.
        logs_entropy (`bool`): Whether the student's entropy is logged as TRL's `entropy` too, because TRL's policy
            loss, which logs it, does not run.
        unknown (`tuple[str]`): Statistics that the teacher can't tell, which are not logged.
    """

    def __init__(self, accelerator: Accelerator, logs_entropy: bool, unknown: tuple[str, ...] = ()):
        super().__init__()
        self.accelerator, self.logs_entropy, self.unknown = accelerator, logs_entropy, unknown

    def token_sums(
        self,
        batch: DistillationBatch,
        stats: dict[str, torch.Tensor],
        others: dict[str, tuple[Number, Number]] | None = None,
        of_method: dict[str, tuple[Number, Number]] | None = None,
    ) -> tuple[Sums, Sums]:
        """
        Sums and counts over the distilled tokens of all processes, by name in the log; none where nothing was
        distilled. A collective.

        Args:
            batch ([`DistillationBatch`]): The micro-batch.
            stats (`dict[str, torch.Tensor]`): Statistics of shape `(K, B, C)`, those of the student `(B, C)`.
            others (`dict[str, tuple]`, *optional*): Local sums and counts that are reduced with them.
            of_method (`dict[str, tuple]`, *optional*): Those of the method's metrics, which are logged with them.

        Returns:
            Those of the tokens, and the others.
        """
        others = others or {}
        stats = {name: value for name, value in stats.items() if name not in self.unknown}
        own = token_sums(list(batch.views), stats, batch.shares) | (of_method or {})
        sums = reduce_sums(self.accelerator, own | others)
        reduced = {name: sums.pop(f"{PREFIX}{name}") for name in others if f"{PREFIX}{name}" in sums}
        if f"{PREFIX}student_entropy" in sums and self.logs_entropy:
            sums["entropy"] = sums[f"{PREFIX}student_entropy"]
        return sums, reduced

    def fill_mean_gap(self, batch: DistillationBatch, stats: dict[str, torch.Tensor], column: list[float]) -> None:
        """
        Put each row's mean gap into the table of completions, which TRL filled when the rows were sampled. A
        collective.

        Args:
            batch ([`DistillationBatch`]): The micro-batch, of the generation batch that the table's last rows show.
            stats (`dict[str, torch.Tensor]`): As above.
            column (`list[float]`): The table's column `mean_gap`.
        """
        local = zip(batch.index.tolist(), mean_gaps(stats, batch.shares).tolist(), strict=True)
        start = len(column) - batch.generation_size
        for row, value in gather_object(list(local)):  # objects, as processes may have left out different rows
            if start + row >= 0:  # TRL keeps the last rows of a long table
                column[start + row] = value
