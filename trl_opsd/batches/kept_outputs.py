# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Teacher's outputs that later passes over a generation batch (`num_iterations`) read again."""

from weakref import WeakKeyDictionary

import torch

from trl_opsd.batches.teacher_batch import Outputs, TeacherBatch


class KeptOutputs:
    """Outputs by the forward that gave them. They are kept while the teacher's weights stand still, and no longer than
    up to their last use or the end of their batch."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[TeacherBatch, tuple[int, Outputs]] = WeakKeyDictionary()

    def take(self, batch: TeacherBatch, num_updates: int | None) -> Outputs | None:
        """
        Outputs of an earlier pass, `None` where there are none. One more use of the batch is over.

        Args:
            batch ([`TeacherBatch`]): Input of the forward.
            num_updates (`int`, *optional*): Updates of the teacher's weights so far; `None` for weights that never
                stand still.
        """
        if any(of_then != num_updates for of_then, _ in self._kept.values()):
            self._kept.clear()
        batch.uses_left -= 1
        kept = self._kept.get(batch) if batch.uses_left > 0 else self._kept.pop(batch, None)
        return None if kept is None else kept[1]

    def keep(self, batch: TeacherBatch, num_updates: int | None, outputs: Outputs) -> None:
        """Keep what a forward gave, if it is of use again; the arguments are those of [`take`]."""
        if batch.uses_left > 0 and num_updates is not None:
            self._kept[batch] = num_updates, outputs

    def tensors(self) -> list[torch.Tensor]:
        """All that is kept."""
        return [one for _, outputs in self._kept.values() for one in outputs]
