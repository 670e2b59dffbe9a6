# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`teacher_offload`: a teacher's copy in host memory while it does not read, with the same results to the last bit."""

import pytest
import torch

import tiny
from batches import batch_of
from conftest import length_reward
from runs import LORA, SAMPLED, assert_same_run, interrupted
from trl_opsd.engines import shards
from trl_opsd.teacher import weights


RUN = {"max_steps": 4, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1}
KINDS = {
    "base": {"teacher_model_kind": "base"},
    "ema": {"teacher_model_kind": "ema", "teacher_update_rate": 0.3},
    "snapshot": {"teacher_model_kind": "snapshot", "teacher_sync_steps": 2},
    "checkpoint": {"teacher_model_kind": "checkpoint"},
    "ema of an adapter": {"teacher_model_kind": "ema", "peft_config": LORA},
}


@pytest.fixture
def make(make_trainer, tokenizer, tmp_path):
    """Build a trainer with a kind of teacher, on a model in bfloat16 with a head of its own."""
    tiny.model(tokenizer, seed=3, tie_word_embeddings=False).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")

    def build(kind, **options):
        given = {**KINDS[kind], **RUN, **options}
        if kind == "checkpoint":
            given["teacher_model_name_or_path"] = str(tmp_path / "other")
        torch.manual_seed(0)
        model = tiny.model(tokenizer, tie_word_embeddings=False).to(torch.bfloat16)
        torch.manual_seed(0)
        return make_trainer(model, **given)

    return build


def held(trainer):
    """Tensors of the teacher outside of its forward."""
    own = trainer.teacher.weights
    copies = getattr(own, "copies", None)
    return list(copies.values()) if copies is not None else [param.data for param in own.core.parameters()]


@pytest.mark.parametrize("mode", [{}, {"reward_funcs": length_reward, **SAMPLED}], ids=["pure", "sampled"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_run(make, kind, mode):
    one = make(kind, **mode)
    one.train()
    other = make(kind, teacher_offload=True, **mode)
    other.train()
    assert_same_run(one, other)
    for here, there in zip(held(one), held(other), strict=True):
        assert torch.equal(here, there) and here.dtype == there.dtype


@pytest.mark.parametrize("kind", ["ema", "snapshot", "checkpoint"])
def test_a_resumed_run(make, kind):
    """With the offload switched on at the resumption: what is saved does not depend on it."""
    whole = make(kind)
    whole.train()
    interrupted(lambda **options: make(kind, **options), 2)
    resumed = make(kind, teacher_offload=True)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


class Moves:
    """Stands for the copies between two memories, which a machine without an accelerator has not: what is read must
    have come through here, as what is held is spoilt while nobody reads."""

    def __init__(self, monkeypatch):
        self.bytes = 0
        for module in (shards, weights):
            monkeypatch.setattr(module, "in_host_memory", self.out)
            monkeypatch.setattr(module, "on_device", self.back)

    @staticmethod
    def out(tensor):
        return tensor.clone().neg_()

    def back(self, tensor, device):
        self.bytes += tensor.nbytes
        return tensor.neg()


@pytest.mark.parametrize("kind", ["base", "checkpoint"])
def test_all_that_is_read_comes_from_host_memory_once_a_forward(make, monkeypatch, kind):
    """The copies for each teacher forward, and the head for each student forward."""
    plain = make(kind)
    inputs = batch_of(plain)
    loss = plain.compute_loss(plain.model, inputs)
    moves = Moves(monkeypatch)
    trainer = make(kind, teacher_offload=True)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    moves.bytes = 0
    assert loss > 0 and torch.equal(trainer.compute_loss(trainer.model, inputs), loss)
    copies = held(trainer)
    head = next(one for one in copies if one.shape == trainer.teacher.model.lm_head.weight.shape)
    assert moves.bytes == sum(one.nbytes for one in copies) + head.nbytes


REFUSED = {
    "live": ({"teacher_model_kind": "live"}, "is only read with `teacher_model_kind='base'`"),
    "a new adapter": ({"peft_config": LORA}, "has nothing to offload"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_where_there_is_no_copy(make_trainer, case):
    options, words = REFUSED[case]
    with pytest.raises(ValueError, match="`teacher_offload=True`") as caught:
        make_trainer(teacher_offload=True, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["base", "checkpoint"])
def test_refused_where_an_engine_shards(make, monkeypatch, kind):
    """As it would be under FSDP2: the error comes before anything is copied or loaded."""
    monkeypatch.setattr("trl_opsd.engines.Backend.prepares_model_in_train", True)
    monkeypatch.setattr("trl_opsd.engines.Backend.shards", shards.FSDP2Shards())
    with pytest.raises(ValueError, match="`teacher_offload=True` was not made for"):
        make(kind, teacher_offload=True)
