# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Teacher's outputs that later passes over a generation batch (`num_iterations`) read again."""

from weakref import WeakKeyDictionary

from trl_opsd.batches.teacher_batch import Outputs, TeacherBatch


class KeptOutputs:
    """Outputs by the forward that gave them. They are kept while the teacher's weights stand still, and no longer than
    up to their last use or the end of their batch."""

    def __init__(self) -> None:
        self._num_updates: int | None = None
        self._outputs: WeakKeyDictionary[TeacherBatch, Outputs] = WeakKeyDictionary()

    def take(self, batch: TeacherBatch, num_updates: int | None) -> Outputs | None:
        """
        Outputs of an earlier pass, `None` where there are none. One more use of the batch is over.

        Args:
            batch ([`TeacherBatch`]): Input of the forward.
            num_updates (`int`, *optional*): Updates of the teacher's weights so far; `None` for weights that never
                stand still.
        """
        if num_updates != self._num_updates:
            self._outputs.clear()
            self._num_updates = num_updates
        batch.uses_left -= 1
        return self._outputs.get(batch) if batch.uses_left > 0 else self._outputs.pop(batch, None)

    def keep(self, batch: TeacherBatch, outputs: Outputs) -> None:
        """Keep what a forward gave, if it is of use again."""
        if batch.uses_left > 0 and self._num_updates is not None:
            self._outputs[batch] = outputs

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(one.nbytes for outputs in self._outputs.values() for one in outputs)
