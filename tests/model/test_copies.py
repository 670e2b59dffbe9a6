# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A copy of the trained model is a model of its own."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig

import tiny
from batches import batch_of
from families import small_model
from runs import move


IDS = torch.arange(3, 15).unsqueeze(0)
COPY = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}
LORA = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)


def expected_logits(model, tokenizer):
    """Of a new model with these weights."""
    other = tiny.model(tokenizer)
    other.load_state_dict(model.state_dict())
    return other(input_ids=IDS).logits


@pytest.mark.parametrize("how", COPY)
@pytest.mark.parametrize("trained", [False, True])
def test_it_answers_with_its_own_weights(make_trainer, tokenizer, how, trained):
    trainer = make_trainer()
    if trained:
        trainer.train()
    before = trainer.model(input_ids=IDS).logits
    other = COPY[how](trainer.model)
    assert torch.equal(other(input_ids=IDS).logits, before)
    move(other)
    logits = other(input_ids=IDS, labels=IDS).logits
    torch.testing.assert_close(logits, expected_logits(other, tokenizer))
    assert not torch.allclose(logits, before, atol=0.1)
    assert torch.equal(trainer.model(input_ids=IDS).logits, before)
    assert not torch.equal(other.generate(IDS, max_new_tokens=8), trainer.model.generate(IDS, max_new_tokens=8))


def test_its_gradient_is_its_own(make_trainer):
    trainer = make_trainer()
    other = copy.deepcopy(trainer.model)
    other(input_ids=IDS, labels=IDS).loss.backward()
    other(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS, fused_lm_head=True).loss.backward()
    assert all(param.grad is not None for param in other.parameters())
    assert all(param.grad is None for param in trainer.model.parameters())


def test_a_copy_with_an_adapter(make_trainer):
    """Moves by itself, and still is the base model without its adapter."""
    trainer = make_trainer(peft_config=LORA)
    before = trainer.model(input_ids=IDS).logits
    other = copy.deepcopy(trainer.model)
    with torch.no_grad(), other.disable_adapter():
        base = other(input_ids=IDS).logits
    assert torch.equal(other(input_ids=IDS).logits, before) and not torch.equal(base, before)
    move(other)
    assert not torch.allclose(other(input_ids=IDS).logits, before, atol=1e-2)
    with torch.no_grad(), other.disable_adapter():
        assert torch.equal(other(input_ids=IDS).logits, base)
    assert torch.equal(trainer.model(input_ids=IDS).logits, before)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt2"])
def test_a_copy_answers_requests(make_trainer, tokenizer, family):
    """The loss of a copy that is trained in the model's place is that of its weights."""
    trainer = make_trainer(small_model(family, tokenizer))
    batch = batch_of(trainer)
    other = copy.deepcopy(trainer.model)
    loss = trainer._compute_loss(other, batch)
    assert loss.item() == trainer._compute_loss(trainer.model, batch).item()
    loss.backward()
    assert all(param.grad is None for param in trainer.model.parameters())
    before = loss.item()
    move(other)
    assert trainer._compute_loss(other, batch).item() != pytest.approx(before, rel=1e-3)
