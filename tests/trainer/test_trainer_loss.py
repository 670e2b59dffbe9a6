# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The trainer's loss against a dense float64 computation of the same batch, and the invariants of the wiring."""

import copy

import pytest
import torch
import trl.trainer.utils
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from batches import batch_of
from conftest import backbone_inputs, length_reward
from dense import reference_loss
from devices import device
from families import FAMILIES, SMALL
from pairwise import pairwise
from trl_opsd.privileged import rollouts_of


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tied", [True, False])
def test_pure_loss_and_gradients_equal_a_dense_reference(make_trainer, tokenizer, tied, temperature):
    model = tiny.model(tokenizer, tie_word_embeddings=tied)
    start = copy.deepcopy(model)
    trainer = make_trainer(model, temperature=temperature)
    with torch.no_grad():  # the student has moved away from the base teacher
        for param in trainer.model.parameters():
            param.add_(0.05 * torch.randn_like(param))
    inputs = batch_of(trainer)
    assert 0 < (inputs["distillation"].views["privileged"].weight > 0).sum() < 4, (
        "the batch should mix rows with and without a view"
    )
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    value, gradients = reference_loss(trainer, inputs, start)
    assert loss.item() == pytest.approx(value, rel=1e-5)
    for name, param in trainer.model.named_parameters():
        torch.testing.assert_close(param.grad.double(), gradients[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rewards", [None, length_reward], ids=["pure", "mixed"])
def test_families_that_change_their_logits(make_trainer, tokenizer, family, rewards):
    """Soft-capping, scaling and a balancing loss, against the model's own full forward: in float32, as experts have no
    float64 kernel and Gemma's eager attention gives nan in it where rows are padded."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, **SMALL, **FAMILIES[family],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    start = copy.deepcopy(model)
    trainer = make_trainer(model, **({"reward_funcs": rewards, "seed": 1} if rewards else {}))
    inputs = batch_of(trainer)
    assert inputs["distillation"].mask.any()
    inputs["advantages"] = torch.zeros_like(inputs["advantages"])
    # With the default seed or not, what the policy term adds at zero advantage is the balancing loss alone
    with torch.no_grad():
        balance = super(type(trainer), trainer)._compute_loss(trainer.model, inputs).item()
        loss = trainer._compute_loss(trainer.model, inputs).item()
    assert (balance != 0) == (family == "qwen3_moe")
    assert loss - balance == pytest.approx(reference_loss(trainer, inputs, start, torch.float32)[0], rel=1e-4)
    trainer.train()


def test_micro_batches_narrower_than_their_generation_batch(make_trainer, tokenizer, rows):
    """Padding spans the generation batch; what a micro-batch does not need of it is cut. The losses still add up."""
    rows[5] = {**rows[5], "privileged_context": "wide " * 20}
    model = tiny.model(tokenizer)
    trainer = make_trainer(
        model, dataset=Dataset.from_list(rows), per_device_train_batch_size=2, gradient_accumulation_steps=8
    )
    batch_of(trainer)
    total, expected, tokens = 0.0, 0.0, 0.0
    for inputs in trainer._buffered_inputs:
        total += trainer._compute_loss(trainer.model, inputs).item()
        count = inputs["distillation"].mask.sum().item()
        expected += reference_loss(trainer, inputs)[0] * count if count else 0.0
        tokens += count
    assert tokens == trainer._buffered_inputs[0]["distillation"].counts.distilled_tokens.item()
    assert total == pytest.approx(expected / tokens, rel=1e-4)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_weights_of_a_generation_batch_that_spans_several_updates(make_trainer, reduction):
    """Each of its updates has total weight 1 on average, whatever the number of micro-batches."""
    trainer = make_trainer(
        gradient_accumulation_steps=2, steps_per_generation=8, per_device_train_batch_size=2,
        distillation_reduction=reduction,
    )  # fmt: skip
    batch_of(trainer)
    updates = trainer.args.steps_per_generation / trainer.args.gradient_accumulation_steps
    weight = sum(
        trainer.objective.weights(inputs["distillation"], updates).sum().item() for inputs in trainer._buffered_inputs
    )
    assert weight == pytest.approx(updates)
    loss = sum(trainer._compute_loss(trainer.model, inputs).item() for inputs in trainer._buffered_inputs)
    if reduction == "token_mean":
        (mean,) = trainer._metrics["train"]["self_distillation/loss"]  # over all tokens, whatever their micro-batch
        assert loss == pytest.approx(updates * mean, rel=1e-4)


def test_mixed_loss_is_the_weighted_sum_of_the_two_terms(make_trainer):
    trainer = make_trainer(reward_funcs=length_reward, policy_weight=0.7, distillation_weight=0.3, seed=1)
    inputs = batch_of(trainer)
    inputs["advantages"] = torch.tensor([1.0, -1.0, 0.5, 2.0], device=device())
    mixed = trainer._compute_loss(trainer.model, inputs)
    policy = super(type(trainer), trainer)._compute_loss(trainer.model, inputs)
    distillation, _ = reference_loss(trainer, inputs)
    assert mixed.item() == pytest.approx(0.7 * policy.item() + 0.3 * distillation, rel=1e-5)


def test_one_student_forward_in_the_mixed_case(make_trainer):
    trainer = make_trainer(reward_funcs=length_reward)
    inputs = batch_of(trainer)
    calls = backbone_inputs(trainer)
    trainer._compute_loss(trainer.model, inputs).backward()
    assert {reader: len(forwards) for reader, forwards in calls.items()} == {"student": 1, "teacher": 1}


@pytest.mark.parametrize("rewards", [None, length_reward], ids=["pure", "mixed"])
def test_trls_head_does_not_run_beside_ours(make_trainer, monkeypatch, rewards):
    trainer = make_trainer(reward_funcs=rewards) if rewards else make_trainer()
    inputs = batch_of(trainer)
    calls = []
    head = trl.trainer.utils._ChunkedLogProbFunction
    original = head.apply
    monkeypatch.setattr(head, "apply", lambda *args: calls.append(1) or original(*args))
    trainer._compute_loss(trainer.model, inputs).backward()
    assert not calls


MODES = [
    {"distillation_alpha": 0.0},
    {"distillation_alpha": 1.0},
    {"distillation_alpha": 0.5},
    {"distillation_mode": "topk_logits", "distillation_topk": 5},
    {"distillation_mode": "topk_logits", "distillation_topk": 5, "distillation_add_tail": True},
    {"distillation_mode": "topk_logits", "distillation_topk": 5, "distillation_topk_source": "teacher"},
    {"distillation_mode": "topk_logits", "distillation_topk": 5, "distillation_topk_source": "union"},
    {"distillation_entry_clip": 0.05},
    {"distillation_entry_clip": 0.05, "distillation_entry_clip_mode": "non_negative", "distillation_alpha": 1.0},
    {"distillation_token_clip": 0.1},
    {"distillation_divergence": "skew_kl", "distillation_alpha": 0.1},
    {"distillation_mode": "sampled_token", "distillation_alpha": 1.0},
    {"distillation_reduction": "sequence_mean"},
]


AGREEING = pairwise(mode=MODES, lora=[False, True], widths=["same", "several"])


@pytest.mark.parametrize(("mode", "lora", "widths"), AGREEING)
def test_identical_contexts_give_zero(make_trainer, mode, lora, widths):
    """A live teacher that reads the student's own prompt: zero divergence, zero gradient."""
    from trl_opsd import View

    words = ["seven", "three", "eight"] if widths == "same" else ["one", "twenty-three", "one hundred and eleven"]
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": word}]} for word in words * 4])
    trainer = make_trainer(
        dataset=dataset,
        teacher_model_kind="live",
        teacher_share_prefix=False,  # or else rows of one prompt are read otherwise than the student reads them
        privileged=lambda groups: [[View()] for _ in rollouts_of(groups)],
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False) if lora else None,
        **mode,
    )
    inputs = batch_of(trainer)
    trainer._compute_loss(trainer.model, inputs).backward()
    gradient = max(param.grad.abs().max().item() for param in trainer.model.parameters() if param.grad is not None)
    divergence = trainer._metrics["train"]["self_distillation/divergence"][-1]
    # The teacher's batch is cut to its own width, so a batch of several widths still has one shape on both sides
    assert (divergence, gradient) == (0.0, 0.0)


def test_identical_contexts_with_other_padding_are_zero_up_to_rounding(make_trainer, tokenizer):
    from trl_opsd import View

    trainer = make_trainer(
        tiny.model(tokenizer, initializer_range=0.1),
        dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "x" * n}]} for n in (3, 30, 8, 14) * 4]),
        teacher_model_kind="live",
        privileged=lambda groups: [[View()] for _ in rollouts_of(groups)],
    )
    inputs = batch_of(trainer)
    for key in ("prompt_ids", "prompt_mask"):  # sixteen more columns of padding for the student alone
        fill = trainer._tokenizer.pad_token_id if key == "prompt_ids" else 0
        inputs[key] = torch.nn.functional.pad(inputs[key], (16, 0), value=fill)
    trainer._compute_loss(trainer.model, inputs).backward()
    gradient = max(param.grad.abs().max().item() for param in trainer.model.parameters())
    assert abs(trainer._metrics["train"]["self_distillation/divergence"][-1]) < 1e-6
    assert gradient < 1e-6
