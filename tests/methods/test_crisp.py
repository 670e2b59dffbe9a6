# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""CRISP: reverse KL to the model that is asked to be brief."""

import torch

from batches import batch_of, teacher_reads
from method_cases import check_loss
from trl_opsd.methods.papers.crisp import INSTRUCTION


def reverse(log_p, log_qs, labels):
    return (log_p.exp() * (log_p - log_qs[0])).sum(-1)


def test_loss():
    check_loss("crisp", ["privileged"], reverse)


def test_the_teacher_is_asked_to_be_brief_and_the_student_is_not(make_trainer, tokenizer):
    trainer = make_trainer(method="crisp")
    batch = batch_of(trainer)
    for ids, prompt in zip(teacher_reads(batch), batch["prompt_ids"], strict=True):
        assert tokenizer.decode(ids).startswith(f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\nWhat")
        assert INSTRUCTION not in tokenizer.decode(prompt)
    assert len(batch["prompt_ids"]) == 4, "rows without a privileged context are taught too"


def test_the_teacher_is_renewed_by_the_clock(make_trainer):
    trainer = make_trainer(method="crisp", teacher_sync_steps=2, max_steps=3)
    start = [param.detach().clone() for param in trainer.model.parameters()]
    trainer.train()
    parts = trainer.teacher.weights.copies
    assert trainer.teacher.num_updates == 1
    now = dict(trainer.model.named_parameters())
    assert any(not torch.equal(parts[name], now[name]) for name in parts), "two steps old, not one"
    named = zip(parts, start, strict=True)
    assert any(not torch.equal(parts[name], before) for name, before in named), "and not the start"
