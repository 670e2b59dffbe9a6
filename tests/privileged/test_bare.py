# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`bare`: the student's own prompt, for a teacher that differs in its weights or its temperature alone."""

import pytest

from batches import batch_of, student_prompts, teacher_reads


def test_the_same_weights_teach_nothing(make_trainer):
    trainer = make_trainer(privileged_source="bare", teacher_model_kind="live", max_steps=1)
    batch = batch_of(trainer)
    assert teacher_reads(batch) == student_prompts(batch)
    trainer.train()
    (log,) = (log for log in trainer.state.log_history if "loss" in log)
    assert log["self_distillation/view_share"] == 1.0, "of rows without a context too"
    assert log["self_distillation/divergence"] == pytest.approx(0.0, abs=1e-6)
