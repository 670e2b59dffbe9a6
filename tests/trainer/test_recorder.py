# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What the recorder puts into TRL's table of completions."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from trl_opsd.trainer.recorder import Recorder


def test_gaps_of_a_table_that_keeps_its_last_rows_alone():
    """Four rows were sampled, and the table holds the last two of them: the first one's gap has no place there."""
    batch = SimpleNamespace(index=torch.tensor([0, 3]), shares=torch.ones(1, 2, 2), generation_size=4)
    stats = {"teacher_logps": torch.tensor([[[5.0, 5.0], [1.0, 2.0]]]), "student_logps": torch.zeros(2, 2)}
    column = [float("nan"), float("nan")]
    Recorder(Accelerator(cpu=True), False).fill_mean_gap(batch, stats, column)
    assert column == pytest.approx([float("nan"), 1.5], nan_ok=True)
