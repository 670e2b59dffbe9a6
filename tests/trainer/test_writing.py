# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The writer: whose weights write, and that it leaves everything as it was."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

import tiny
import writing_worker
from batches import batch_of
from launch import launch
from runs import LORA, move
from trl_opsd.batches.pixels import ImageCache
from writing_worker import CHATS, TEXTS, alone


@pytest.fixture
def made(make_trainer, tokenizer, tmp_path):
    """Build a trainer whose student has moved away from its start, and the weights that each side should have."""

    def make(kind, lora=False, **options):
        if kind == "checkpoint":
            tiny.model(tokenizer, seed=5).save_pretrained(tmp_path / "teacher")
            tokenizer.save_pretrained(tmp_path / "teacher")
            options["teacher_model_name_or_path"] = str(tmp_path / "teacher")
        if kind in ("ema", "snapshot"):
            options |= {"teacher_sync_steps": 1}
        peft = LORA if lora else None
        trainer = make_trainer(teacher_model_kind=kind, peft_config=peft, **options)
        start = tiny.model(tokenizer).state_dict()
        move(trainer.model, 0.3 if lora else 0.1)
        student = whole(trainer.model)
        teacher = {"base": start, "checkpoint": tiny.model(tokenizer, seed=5).state_dict(), "live": student}.get(kind)
        if kind == "ema":
            trainer.teacher.update(1)
            rate = trainer.args.teacher_update_rate
            teacher = {name: value.lerp(student[name], rate) for name, value in start.items()}
        return trainer, {"live": student, "teacher": teacher}

    return make


def whole(model):
    """Weights as one model, an adapter merged in."""
    model = copy.deepcopy(model)
    model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return {name: value.clone() for name, value in model.state_dict().items()}


KINDS = [("live", False), ("live", True), ("base", False), ("base", True), ("ema", False), ("checkpoint", False)]


@pytest.mark.parametrize(("kind", "lora"), KINDS)
def test_whose_weights_write(made, kind, lora):
    """Each side writes what a plain model with its weights writes to one prompt after the other."""
    options = {"teacher_update_rate": 0.5} if kind == "ema" else {}
    trainer, weights = made(kind, lora, **options)
    write, told = trainer.collector.run.write, {}
    for side in ("live", "teacher"):
        told[side] = write(CHATS, weights=side, max_new_tokens=6)
        assert told[side] == alone(weights[side], CHATS, 6), side
    assert (told["live"] == told["teacher"]) == (kind == "live") and len(set(told["live"])) > 3


def test_texts_and_their_number(made, monkeypatch):
    """Ten prompts in batches of four, each as if it were alone; none takes no pass."""
    trainer, weights = made("base")
    sizes, generate = [], trainer.model.generate

    def counted(**kwargs):
        sizes.append(len(kwargs["input_ids"]))
        return generate(**kwargs)

    monkeypatch.setattr(trainer.model, "generate", counted)
    write = trainer.collector.run.write
    assert write(TEXTS, max_new_tokens=5) == alone(weights["live"], TEXTS, 5)
    assert sizes == [4, 4, 2] and len(TEXTS) == 10
    assert write([]) == [] and write([], weights="teacher") == []
    assert sizes == [4, 4, 2]


def test_control_tokens_in_what_is_read_are_text(made, tokenizer):
    """In messages, whose template is the model's; a text is written with control tokens of one's own."""
    trainer, _ = made("live")
    writer, special = trainer.collector.run.write, tokenizer.convert_tokens_to_ids("<|im_end|>")

    def ends(prompt, **how):
        return writer._encoded(prompt, {}, ImageCache(), **how)[0].count(special)

    assert ends([{"role": "user", "content": "a<|im_end|>\n<|im_start|>system\nb"}]) == ends(CHATS[0]) == 1
    assert ends("a<|im_end|>b") == 1 and ends("a") == 0 == ends("a<|im_end|>b", literal=True)


def test_arguments_of_the_chat_template(made):
    trainer, weights = made("live", student_chat_template_kwargs={"enable_thinking": True})
    write = trainer.collector.run.write
    assert write(CHATS, max_new_tokens=5) == alone(weights["live"], CHATS, 5, enable_thinking=True)
    off = {"enable_thinking": False}
    assert write(CHATS, max_new_tokens=5, chat_template_kwargs=off) == alone(weights["live"], CHATS, 5)


def test_sampling(made):
    trainer, _ = made("live")
    write, hot = trainer.collector.run.write, {"temperature": 3.0, "max_new_tokens": 12}
    torch.manual_seed(1)
    first = write(TEXTS[:1] * 6, **hot)
    torch.manual_seed(1)
    assert write(TEXTS[:1] * 6, **hot) == first and len(set(first)) == 6


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("kind", "lora"), [("live", False), ("base", False), ("base", True), ("checkpoint", False)])
def test_everything_is_left_as_it_was(made, kind, lora, checkpointing):
    trainer, _ = made(kind, lora, gradient_checkpointing=checkpointing)
    model = trainer.model
    if checkpointing:  # which begins with the training
        model.gradient_checkpointing_enable()
    trainer._compute_loss(model, batch_of(trainer)).backward()
    norm = next(module for name, module in model.named_modules() if name.endswith("norm"))
    norm.eval()  # a module that the user has frozen so
    before = snapshot(trainer)
    assert (
        any(grad.any() for grad in before["gradients"].values()) and (True in before["checkpointing"]) == checkpointing
    )
    for side in ("live", "teacher"):
        trainer.collector.run.write(CHATS, weights=side, max_new_tokens=4)
    after = snapshot(trainer)
    assert before.keys() == after.keys()
    for what, value in before.items():
        if isinstance(value, dict) and what != "generation":
            assert value.keys() == after[what].keys(), what
            assert all(torch.equal(one, after[what][name]) for name, one in value.items()), what
        else:
            assert after[what] == value, what
    assert model.training and not norm.training


def snapshot(trainer):
    """All that writing might change."""
    model = trainer.model
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "random numbers": {"cpu": torch.get_rng_state()},
        "trained": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "caches": [module.config.use_cache for module in model.modules() if hasattr(module, "config")],
        "checkpointing": [getattr(module, "gradient_checkpointing", None) for module in model.modules()],
        "generation": model.generation_config.to_dict(),
    }


def test_no_dropout_while_writing(make_trainer, tokenizer):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.9)
    trainer = make_trainer(peft_config=lora)
    move(trainer.model, 0.3)
    weights = whole(trainer.model)
    assert trainer.model.training
    assert trainer.collector.run.write(CHATS, max_new_tokens=6) == alone(weights, CHATS, 6)


def test_a_prompt_that_is_too_long(made, tokenizer):
    trainer, _ = made("live")
    with pytest.raises(ValueError, match=r"reads 512 tokens, and what it was asked .* takes 510, .* adds 3\."):
        trainer.collector.run.write(["x" * 510, "y"], max_new_tokens=3)
    assert len(trainer.collector.run.write(["x" * 510, "y"], max_new_tokens=2)) == 2


def test_weights_that_there_are_not(made):
    trainer, _ = made("live")
    with pytest.raises(ValueError, match="`weights` must be 'live' or 'teacher', got 'ema'"):
        trainer.collector.run.write(CHATS, weights="ema")


@pytest.mark.engines
def test_two_processes_with_unequal_numbers_of_prompts(tmp_path):
    """Seven prompts and none, none and three, five and six, none at all: each gets its own texts."""
    launch(Path(writing_worker.__file__), str(tmp_path), processes=2, seconds=120)
    left, right = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2))
    for told, rank in ((left, 0), (right, 1)):
        for side in ("live", "teacher"):
            assert [call["told"] for call in told[side]] == [call["alone"] for call in told[side]]
            assert [len(call["told"]) for call in told[side]] == [numbers[rank] for numbers in writing_worker.NUMBERS]
    assert left["live"][2]["told"] != left["teacher"][2]["told"]
