# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""TRD: the student is pulled to the teacher on the teacher's own rewriting of its answer."""

import pytest
import torch

import tiny
from batches import batch_of, completions, student_prompts, teacher_reads
from dense import reference_loss
from trl_opsd.privileged.guided import GuidedRollouts
from turn_cases import by_role, check_gradients, numbered


@pytest.fixture
def taught(rows):
    for i, row in enumerate(rows):
        row["privileged_context"] = f"The answer is {i}."
    return rows


def test_what_is_read_and_trained(make_trainer, taught):
    """The teacher reads the student's attempt and the solution before its own rewriting; the student the question."""
    trainer = make_trainer(method="trd", shuffle_dataset=False)
    calls = numbered(trainer)
    batch = batch_of(trainer)
    assert by_role(trainer) == ["distil"] * 4 and len(calls) == 1
    decode, rollouts = trainer.processing_class.decode, trainer.collected.rollouts
    index = batch["distillation"].index.tolist()
    rows = zip(index, student_prompts(batch), teacher_reads(batch), completions(batch), strict=True)
    for i, own, teacher, text in rows:
        question, attempt = taught[i]["prompt"][0]["content"], rollouts[i].attempt.completion_ids
        assert decode(own) == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        assert question in decode(teacher) and f"The answer is {i}." in decode(teacher)
        assert decode(attempt, skip_special_tokens=True).strip() in decode(teacher)
        assert text == rollouts[i].completion_ids != attempt


def test_the_loss_is_the_forward_kl_on_the_rewriting(make_trainer, tokenizer, taught):
    """In float64, with a student that has moved away from the teacher's weights."""
    trainer = make_trainer(method="trd")
    trainer.train()
    batch = batch_of(trainer)
    loss, gradients = reference_loss(trainer, batch, tiny.model(tokenizer))
    check_gradients(trainer, batch, gradients)
    assert trainer._compute_loss(trainer.model, batch).item() == pytest.approx(loss, rel=1e-4) and loss > 0.1


def test_without_a_context_there_is_nothing_to_learn(make_trainer):
    turns = {"slots": ["distil"], "source": "bare"}
    trainer = make_trainer(method="trd", turns=turns, teacher_model_kind="live", max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["self_distillation/view_share"] == 1.0
    assert log["loss"] == pytest.approx(0.0, abs=1e-6) and log["grad_norm"] == pytest.approx(0.0, abs=1e-6)


def test_without_an_attempt_it_is_distillation_on_guided_rollouts(make_trainer, rows):
    """On the same texts, and rows without a context are sampled as ever."""
    turns = {"slots": ["distil"], "source": "column", "attempt": False}
    trainers = [
        make_trainer(method="trd", turns=turns, max_steps=3),
        make_trainer(rollout_func=GuidedRollouts(share=1.0), max_steps=3),
    ]
    prompts = []
    for trainer in trainers:
        prompts.append(numbered(trainer))
        trainer.train()
    assert prompts[0] == prompts[1] and len(prompts[0]) == 3
    for one, other in zip(trainers[0].model.parameters(), trainers[1].model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert trainers[0].state.log_history[0]["self_distillation/divergence"] > 0
