# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The teacher's self-test before the first step."""

import pytest
import torch
from peft import LoraConfig
from torch import nn

import tiny


KINDS = {
    "live": {},
    "base": {},
    "ema": {},
    "snapshot": {"teacher_sync_steps": 2},
}


@pytest.mark.parametrize("lora", [None, True, False], ids=["all weights", "new adapter", "adapter with a start"])
@pytest.mark.parametrize("kind", KINDS)
def test_sound_teachers_pass(make_trainer, kind, lora):
    peft = {} if lora is None else {"peft_config": LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=lora)}
    trainer = make_trainer(teacher_model_kind=kind, **KINDS[kind], **peft, max_steps=1)
    trainer.train()


@pytest.mark.parametrize("kind", ["base", "ema", "snapshot"])
def test_a_copy_that_is_not_the_student(make_trainer, kind):
    """As a fault of an engine, or of a copy, would make it."""
    trainer = make_trainer(teacher_model_kind=kind, **KINDS[kind])
    for value in trainer.teacher.weights.copies.values():
        value.add_(0.5 * torch.randn_like(value))
    trainer.objective._heads_checked = False
    with pytest.raises(ValueError, match=r"has the student's weights, and yet its logits .* differ by"):
        trainer.train()
    trainer.args.teacher_self_test = False
    trainer.objective._heads_checked = False
    trainer.train()


def test_a_resumed_teacher_may_differ(make_trainer):
    options = {"teacher_model_kind": "base", "save_strategy": "steps", "save_steps": 1}
    make_trainer(**options, max_steps=1).train()
    trainer = make_trainer(**options, max_steps=2)
    trainer.objective._heads_checked = False  # as under an engine that shards, where it runs within the training
    trainer.train(resume_from_checkpoint=True)


def test_a_model_that_is_not_the_same_twice(make_trainer, tokenizer):
    class Noise(nn.Module):
        strength = 0.0

        def forward(self, hidden):
            return hidden + self.strength * torch.randn_like(hidden)

    model = tiny.model(tokenizer)
    noise = Noise()
    model.model.layers[0].mlp = nn.Sequential(model.model.layers[0].mlp, noise)
    trainer = make_trainer(model, teacher_model_kind="live")
    noise.strength = 0.3  # only now, as the check of positions would find it first
    trainer.objective._heads_checked = False
    with pytest.raises(ValueError, match=r"not the same twice.*`teacher_self_test=False`"):
        trainer.train()


def checkpoint_of(folder, tokenizer, change):
    model = tiny.model(tokenizer, seed=5)
    change(model)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return {"teacher_model_kind": "checkpoint", "teacher_model_name_or_path": str(folder)}


def test_a_teacher_without_weights(make_trainer, tokenizer, tmp_path):
    def empty(model):
        for weight in model.parameters():
            weight.data.zero_()

    options = checkpoint_of(tmp_path / "teacher", tokenizer, empty)
    with pytest.raises(ValueError, match=r"every token equally likely.*`teacher_model_name_or_path`"):
        make_trainer(**options)


@pytest.mark.parametrize(("ends", "warned"), [(None, False), ("<|im_end|>", False), ("<|im_start|>", True)])
def test_stop_tokens_out_of_reach(make_trainer, tokenizer, tmp_path, caplog, ends, warned):
    def end(model):
        model.generation_config.eos_token_id = ends and tokenizer.convert_tokens_to_ids(ends)

    trainer = make_trainer(**checkpoint_of(tmp_path / "teacher", tokenizer, end))
    assert ("The teacher ends answers in <|im_start|>, which ends none of the student's" in caplog.text) == warned
    assert trainer.teacher.starts_as_student is False
