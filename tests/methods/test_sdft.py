# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""SDFT: forward KL, the first tokens left out, a slow moving average."""

import pytest

from method_cases import check_loss
from trl_opsd import OPSDConfig


def test_loss():
    def forward_kl(log_p, log_qs, labels):
        (log_q,) = log_qs
        return (log_q.exp() * (log_q - log_p)).sum(-1)

    check_loss("sdft", ["privileged"], forward_kl)


def test_identical_contexts_give_zero(make_trainer):
    from trl_opsd import View
    from trl_opsd.privileged import rollouts_of

    trainer = make_trainer(
        method="sdft", privileged=lambda groups: [[View()] for _ in rollouts_of(groups)], max_steps=1
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["self_distillation/divergence"] == pytest.approx(0.0, abs=1e-6) and log["grad_norm"] < 1e-5


def test_values():
    config = OPSDConfig("unused", method="sdft", bf16=False, num_generations=1)
    assert (config.teacher_model_kind, config.teacher_update_rate) == ("ema", 0.02)
    assert (config.num_loss_tokens_to_skip, config.distillation_alpha) == (3, 0.0)


def test_the_first_three_tokens_are_not_distilled(make_trainer):
    from batches import batch_of

    batch = batch_of(make_trainer(method="sdft"))
    mask, wrote = batch["distillation"].mask, batch["completion_mask"]
    taught = mask.sum(1) > 0
    assert taught.any() and mask[:, :3].sum() == 0
    assert (mask[taught].sum(1) == wrote[taught].sum(1) - 3).all()
