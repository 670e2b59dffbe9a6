# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Absolute positions are counted from a row's own first token, so that a row is worth what it is worth alone."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType

import tiny
from batches import batch_of, completions, student_prompts, teacher_reads
from conftest import length_reward
from families import ABSOLUTE, small_model
from runs import move
from trl_opsd import View
from trl_opsd.privileged import rollouts_of


LENGTHS = [(2, 50), (30, 3), (5, 30), (20, 20)]  # the longest prompt has the shortest context
ROWS = [{"prompt": [{"role": "user", "content": "q" * n}], "privileged_context": "c" * m} for n, m in LENGTHS]
IN_ORDER = {"dataset": Dataset.from_list(ROWS), "shuffle_dataset": False}
ADAPTERS = {
    "lora": LoraConfig(r=2, target_modules=["c_attn"]),
    "prefix": PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3),
    "prompt": PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3),
}


def log_probs_alone(model, prompt, completion):
    """Next-token log-probabilities `(C, V)` of one row without padding, by the model's own forward."""
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(completion) - 1 : -1]
    return logits.log_softmax(-1)


def own_copy(model):
    """A copy in evaluation mode with the class's own forward."""
    model = copy.deepcopy(model).eval()
    core = model.get_base_model() if hasattr(model, "peft_config") else model
    core.__dict__.pop("forward", None)
    return model


def row_by_row(student, teacher, batch):
    """Mean forward KL over the tokens of a batch, row by row, and its gradients by the student's trained parameters."""
    total, tokens = torch.zeros(()), 0
    rows = zip(student_prompts(batch), teacher_reads(batch), completions(batch), strict=True)
    for prompt, read, completion in rows:
        log_p, log_q = log_probs_alone(student, prompt, completion), log_probs_alone(teacher, read, completion).detach()
        total = total + (log_q.exp() * (log_q - log_p)).sum()
        tokens += len(completion)
    (total / tokens).backward()
    gradients = {name: param.grad for name, param in student.named_parameters() if param.grad is not None}
    return (total / tokens).item(), gradients


@pytest.mark.parametrize(
    ("family", "adapter"), [*((family, None) for family in ABSOLUTE), *(("gpt2", one) for one in ADAPTERS)]
)
def test_a_batch_is_worth_its_rows(make_trainer, tokenizer, family, adapter):
    trainer = make_trainer(small_model(family, tokenizer), peft_config=ADAPTERS.get(adapter), **IN_ORDER)
    move(trainer.model)
    batch = batch_of(trainer)
    prompts = batch["distillation"].views["privileged"].prompt_mask
    assert not batch["prompt_mask"].all() and not prompts.all(), "student and teacher read padding"
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    student = own_copy(trainer.model)
    with trainer.teacher.teacher_forward(trainer.model) as teacher:
        teacher = own_copy(teacher)
    expected, gradients = row_by_row(student, teacher, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    for name, param in trainer.model.named_parameters():
        if param.requires_grad:
            torch.testing.assert_close(param.grad, gradients[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", ABSOLUTE)
def test_a_step_does_not_depend_on_the_rows_beside(make_trainer, tokenizer, family):
    logs = []
    for size in (1, 2, 4):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size, "max_steps": 1}
        trainer = make_trainer(
            small_model(family, tokenizer), generation_kwargs={"do_sample": False}, **IN_ORDER, **options
        )
        trainer.train()
        logs.append([trainer.state.log_history[0][name] for name in ("loss", "grad_norm")])
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
    assert logs[2] == pytest.approx(logs[0], rel=1e-4)


def test_old_and_reference_log_probabilities(make_trainer, tokenizer, tmp_path):
    """Before the first update, the policy's ratio is one and its distance to the reference model is zero."""
    small_model("gpt2", tokenizer).save_pretrained(tmp_path)  # from where TRL loads the reference model
    options = {"reward_funcs": length_reward, "num_iterations": 2, "steps_per_generation": 4, "beta": 0.1}
    trainer = make_trainer(str(tmp_path), gradient_accumulation_steps=1, **options)
    batch_of(trainer)
    widths = {part["prompt_ids"].shape[1] for part in trainer._buffered_inputs}
    assert len(widths) > 1, "padding that TRL's pass had is trimmed"
    for part in trainer._buffered_inputs:
        ids, mask = (torch.cat([part[f"prompt_{one}"], part[f"completion_{one}"]], 1) for one in ("ids", "mask"))
        logps, *_ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, part["completion_ids"].shape[1]
        )
        kept = part["completion_mask"].bool()
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            torch.testing.assert_close(part[name][kept], logps[kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "xglm"])
def test_a_shared_prefix(make_trainer, tokenizer, family):
    """Groups of two lengths: prompts that are read once are padded too."""
    losses = {}
    for share in (True, False):
        trainer = make_trainer(
            small_model(family, tokenizer), teacher_share_prefix=share, num_generations=4, max_steps=1,
            per_device_train_batch_size=8, **IN_ORDER,
        )  # fmt: skip
        batch = batch_of(trainer)
        (one,) = batch["distillation"].teacher_batches
        assert one.share_prefix == share and not one.prompt_mask.all()
        losses[share] = trainer._compute_loss(trainer.model, batch).item()
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_identical_contexts_of_several_widths(make_trainer, tokenizer):
    """A live teacher of some rows reads another padding than the student."""
    trainer = make_trainer(
        small_model("gpt2", tokenizer), teacher_model_kind="live", reward_funcs=length_reward, num_generations=2,
        privileged=lambda groups: [[View()] if one.group == 0 else [] for one in rollouts_of(groups)], **IN_ORDER,
    )  # fmt: skip
    batch = batch_of(trainer)
    (one,) = batch["distillation"].teacher_batches
    assert one.prompt_ids.shape[1] < batch["prompt_ids"].shape[1]
    trainer._compute_loss(trainer.model, batch)
    assert abs(trainer._metrics["train"]["self_distillation/divergence"][-1]) < 1e-6


@pytest.mark.parametrize("family", ["qwen2", "opt", "bloom", "mpt", "qwen3_moe"])
def test_other_models_are_called_as_before(make_trainer, tokenizer, family):
    """Relative positions, and those that a model counts from the mask itself."""
    model = tiny.model(tokenizer) if family == "qwen2" else small_model(family, tokenizer)
    trainer = make_trainer(model)
    batch = batch_of(trainer)
    given = []
    note = lambda module, args, kwargs: given.append(kwargs.get("position_ids"))  # noqa: E731
    trainer.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    trainer._compute_loss(trainer.model, batch)
    assert given == [None, None], "teacher and student"


def test_a_model_that_padding_reaches(make_trainer, tokenizer):
    """Bart's decoder counts positions from the first column and takes no others."""
    model = small_model("bart", tokenizer, d_model=32, decoder_layers=2, decoder_ffn_dim=64, init_std=0.3)
    with pytest.raises(ValueError, match="BartForCausalLM reads a row otherwise behind padding"):
        make_trainer(model)
