# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A prompt that rows share is read once by a reader that can, and by no other: each is asked, and checked."""

import warnings

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, TaskType, get_peft_model

import tiny
from batches import batch_of
from families import small_model
from runs import move
from trl_opsd import View
from trl_opsd.model.shared_prefix import can_share_prefix
from trl_opsd.privileged import rollouts_of
from trl_opsd.trainer import prefix_sharing


ROWS = [{"prompt": [{"role": "user", "content": f"What is {'very ' * n}long?"}]} for n in (2, 6)] * 4
GROUPS = {"dataset": Dataset.from_list(ROWS), "num_generations": 4, "per_device_train_batch_size": 8}
CONTEXT = "The answer is 7, and this context is long enough to be worth sharing."
VIRTUAL = {"task_type": TaskType.CAUSAL_LM, "num_virtual_tokens": 4}
PROMPT_LEARNING = {
    "prefix": PrefixTuningConfig(**VIRTUAL),
    "prompt": PromptTuningConfig(**VIRTUAL),
    "p-tuning": PromptEncoderConfig(**VIRTUAL, encoder_hidden_size=16),
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LENGTH_DEPENDENT = {
    "dynamic": DYNAMIC,
    "longrope": {**LONG, "factor": 4.0, "original_max_position_embeddings": 64},
}


def always(*views):
    return lambda groups: [list(views) for _ in rollouts_of(groups)]


def plans(trainer, batch):
    """Whether each teacher forward shares prompts, by who reads it."""
    return {one.live: one.share_prefix for one in batch["distillation"].teacher_batches}


def outcome(trainer):
    """Loss and gradients of a micro-batch, and how it was read."""
    batch = batch_of(trainer)
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    gradients = {name: param.grad for name, param in trainer.model.named_parameters() if param.grad is not None}
    return loss.item(), gradients, plans(trainer, batch)


def assert_equal_outcomes(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-4)
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", PROMPT_LEARNING)
def test_virtual_tokens_are_read_by_every_row(make_trainer, name):
    """A live teacher with the student's own prompt says the same."""
    options = {"peft_config": PROMPT_LEARNING[name], "teacher_model_kind": "live", "privileged": always(View(None))}
    trainer = make_trainer(**GROUPS, **options)
    move(trainer.model, scale=0.5)
    loss, gradients, shared = outcome(trainer)
    assert shared == {False: False}
    assert loss == 0.0
    assert max(gradient.abs().max() for gradient in gradients.values()) == 0.0


@pytest.mark.parametrize("name", PROMPT_LEARNING)
def test_an_adapter_with_virtual_tokens_tells(tokenizer, name):
    model = get_peft_model(tiny.model(tokenizer), PROMPT_LEARNING[name])
    assert not can_share_prefix(model)
    assert can_share_prefix(get_peft_model(tiny.model(tokenizer), LoraConfig(target_modules=["q_proj"])))


@pytest.mark.parametrize("name", LENGTH_DEPENDENT)
def test_rotary_embeddings_that_depend_on_the_length(tokenizer, name):
    options = {"max_position_embeddings": 64, "rope_parameters": LENGTH_DEPENDENT[name]}
    assert not can_share_prefix(tiny.model(tokenizer, **options))
    by_layer = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}, "sliding_attention": DYNAMIC}
    model = tiny.model(tokenizer)
    model.config.rope_parameters = by_layer
    assert not can_share_prefix(model)
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    assert can_share_prefix(tiny.model(tokenizer, rope_parameters=linear))


@pytest.mark.parametrize("hybrid", ["student", "teacher"])
def test_each_reader_is_asked_for_its_own_views(make_trainer, tokenizer, tmp_path, hybrid):
    """A model with layers of convolutions beside one that can share: views of both readers."""
    layers = {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False}
    models = {"plain": tiny.model(tokenizer), "hybrid": small_model("lfm2", tokenizer, **layers)}
    student, teacher = (models["hybrid" if hybrid == one else "plain"] for one in ("student", "teacher"))
    for part in (teacher, tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    views = View(CONTEXT, name="theirs"), View(f"{CONTEXT} Indeed.", name="own", reader="live")
    results = []
    for share in (True, False):
        torch.manual_seed(0)
        results.append(
            outcome(
                make_trainer(
                    student, teacher_model_kind="checkpoint", teacher_model_name_or_path=str(tmp_path / "teacher"),
                    privileged=always(*views), teacher_share_prefix=share, **GROUPS,
                )
            )
        )  # fmt: skip
        student.zero_grad()
    assert results[0][2] == {True: hybrid == "teacher", False: hybrid == "student"}
    assert_equal_outcomes(*results)


@pytest.mark.parametrize("live", [False, True], ids=["teacher", "live"])
@pytest.mark.parametrize("problem", ["prefix", "longrope"])
def test_a_reader_that_says_it_can_is_checked(make_trainer, tokenizer, monkeypatch, problem, live):
    """The first shared read, compared with a plain one: one warning, and rows read for themselves from then on."""
    # Another teacher than `base`, which reads without the adapter
    adapter = {"peft_config": PROMPT_LEARNING["prefix"], "teacher_model_kind": "ema"}
    options = adapter if problem == "prefix" else {}
    # Prompts have up to 133 tokens, with completions 141
    long = {**LENGTH_DEPENDENT["longrope"], "original_max_position_embeddings": 135}
    rope = {"rope_parameters": long} if problem == "longrope" else {}
    view = View(CONTEXT, reader="live" if live else "teacher")
    losses = {}
    for can, share in ((True, True), (False, False)):
        monkeypatch.setattr(prefix_sharing, "can_share_prefix", lambda model, can=can: can)
        torch.manual_seed(0)
        trainer = make_trainer(tiny.model(tokenizer, **rope), privileged=always(view), **GROUPS, **options)
        move(trainer.model)
        batch = batch_of(trainer)
        assert plans(trainer, batch) == {live: share}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses[share] = [trainer._compute_loss(trainer.model, batch).item() for _ in range(2)]
        told = [str(one.message) for one in caught if "`teacher_share_prefix=False`" in str(one.message)]
        assert len(told) == (1 if share else 0), told
        assert plans(trainer, batch_of(trainer)) == {live: False}, "nor are later batches planned with it"
    assert losses[True] == losses[False]


def test_all_processes_decide_alike(make_trainer, monkeypatch):
    """Where another process finds a difference, this one reads row by row too."""
    trainer = make_trainer(privileged=always(View(CONTEXT)), **GROUPS)
    batch = batch_of(trainer)
    other = torch.tensor([0.5])
    monkeypatch.setattr(trainer.accelerator, "gather", lambda change: torch.cat([change, other]))
    with pytest.warns(UserWarning, match="hidden states change by 50.0%"):
        trainer.objective._teacher_outputs(trainer.model, batch["distillation"], batch["distillation"].token_index)
    assert plans(trainer, batch) == {False: False} and not trainer.sharing.allowed(live=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding_is_no_difference(make_trainer, tokenizer, recwarn, dtype):
    model = tiny.model(tokenizer, max_position_embeddings=512).to(dtype)
    trainer = make_trainer(model, privileged=always(View(CONTEXT)), **GROUPS)
    assert outcome(trainer)[2] == {False: True}
    assert not [one for one in recwarn if "teacher_share_prefix" in str(one.message)]
