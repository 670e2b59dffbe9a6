# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""TS-OPSD: the model at the start, at a higher temperature, is the teacher."""

import pytest
import torch

from batches import batch_of, student_prompts, teacher_reads
from method_cases import V, check_loss, random
from trl_opsd.kernels import fused_linear_divergence
from trl_opsd.losses import DivergenceSpec


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("of_teacher", [None, 3.0, 0.5])
def test_loss(temperature, of_teacher):
    """`check_loss` gives log q at the teacher's temperature, which is 1.5 by default."""

    def formula(log_p, log_qs, labels):
        return (log_qs[0].exp() * (log_qs[0] - log_p)).sum(-1)

    options = {} if of_teacher is None else {"distillation_teacher_temperature": of_teacher}
    assert check_loss("ts_opsd", ["privileged"], formula, temperature=temperature, **options) > 0


def test_gradient_at_the_start_and_at_the_end():
    """p - softmax(z / T) on the student's logits, both sides' logits being z; nothing where the student's are z / T."""
    start = 3 * torch.randn(5, V, generator=random(0), dtype=torch.float64)
    head, spec = torch.eye(V, dtype=torch.float64), DivergenceSpec("forward_kl", teacher_temperature=1.5)
    for logits, wanted in ((start, start.softmax(-1) - (start / 1.5).softmax(-1)), (start / 1.5, 0 * start)):
        logits = logits.clone().requires_grad_()
        loss, _ = fused_linear_divergence(logits, head, start, head, spec=spec)
        (got,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(got, wanted / 5, rtol=1e-9, atol=1e-12)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)


def test_both_read_the_students_prompt(make_trainer):
    trainer = make_trainer(method="ts_opsd")
    batch = batch_of(trainer)
    assert teacher_reads(batch) == student_prompts(batch) and len(student_prompts(batch)) == 4


@pytest.mark.parametrize(("temperature", "sign"), [(1.5, 1), (1.0, 0), (0.5, -1)])
def test_the_entropy_follows_the_temperature(make_trainer, temperature, sign):
    """Of the same prompts; at temperature 1 there is nothing to learn."""
    options = {"max_steps": 12, "learning_rate": 1e-3, "per_device_train_batch_size": 16, "num_generations": 1}
    trainer = make_trainer(method="ts_opsd", distillation_teacher_temperature=temperature, **options)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    entropy, divergence = (
        [log[f"self_distillation/{name}"] for log in logs] for name in ("student_entropy", "divergence")
    )
    if sign:
        assert sign * (sum(entropy[-3:]) / 3 - entropy[0]) > 0.1
        assert sum(divergence[-3:]) / 3 < 0.9 * divergence[0]
    else:
        assert max(divergence) == pytest.approx(0.0, abs=1e-6)
