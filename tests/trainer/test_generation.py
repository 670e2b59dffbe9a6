# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Whatever generates, training means the same: continuous batching, and a sampler that disagrees with the trainer.

What needs a vLLM engine is in tests/distributed. Here the disagreement is made by hand, and the loss computed
independently.
"""

import copy

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer

import tiny
from batches import batch_of
from conftest import length_reward, retaken
from dense import dense_logits
from devices import device
from trl_opsd import OPSDConfig
from trl_opsd.trainer.setup_checks import check_student_lengths


# Continuous batching

# By default the cache takes half of the free memory, which on a CPU takes a minute to allocate
CONTINUOUS = {
    "use_transformers_continuous_batching": True,
    "transformers_continuous_batching_config": {"num_blocks": 32, "max_batch_tokens": 256},
}
GREEDY = {"generation_kwargs": {"do_sample": False}}


def trained(trainer):
    """Weights and losses, of training and evaluation."""
    trainer.train()
    trainer.evaluate()
    losses = [value for log in trainer.state.log_history for name, value in log.items() if name.endswith("loss")]
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}, losses


def test_continuous_batching_trains_and_evaluates_as_generate_does(make_trainer, rows):
    options = {**GREEDY, "eval_dataset": Dataset.from_list(rows[:8]), "per_device_eval_batch_size": 8}
    weights, losses = trained(make_trainer(**options))
    same_weights, same_losses = trained(make_trainer(**options, **CONTINUOUS))
    assert len(losses) == 4 + 3 and len(set(losses)) > 3  # two steps and the whole; the evaluation
    assert same_losses == pytest.approx(losses, rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(same_weights[name], weight, rtol=1e-4, atol=1e-6, msg=name)


def test_continuous_batching_applies_the_temperature(make_trainer):
    greedy, cold = make_trainer(**GREEDY), make_trainer(**CONTINUOUS, temperature=1e-4)
    assert batch_of(cold)["completion_ids"].tolist() == batch_of(greedy)["completion_ids"].tolist()


def test_continuous_batching_leaves_the_trained_weights_in_their_precision(make_trainer):
    """TRL casts the model to bfloat16 for the generation; a step of this learning rate would vanish in it."""
    trainer = make_trainer(**CONTINUOUS, bf16=True, use_cpu=True, learning_rate=1e-5, optim="sgd", max_grad_norm=1.0)
    start = copy.deepcopy(trainer.model)
    trainer.train()
    for (name, weight), old in zip(trainer.model.named_parameters(), start.parameters(), strict=True):
        assert weight.dtype == torch.float32, name
        assert not torch.equal(weight, old) and (weight - old).abs().max() < 1e-4, name
    for (name, buffer), old in zip(trainer.model.named_buffers(), start.buffers(), strict=True):
        assert buffer.dtype == old.dtype and torch.equal(buffer, old), name


# A sampler that disagrees with the trainer

RATIOS = {"tokens": True, "sequences": False}


def disagreeing(trainer, per_token):
    """A micro-batch with what TRL adds for vLLM: one token without the sampler's word, ratios on both sides of 1, and a
    ratio of 0, as the mask modes give."""
    inputs = dict(batch_of(trainer))
    generator = torch.Generator().manual_seed(3)
    rows, tokens = inputs["completion_mask"].shape
    noise = 0.5 * torch.randn(3, rows, tokens, generator=generator).to(device())
    _, log_p = dense_logits(trainer.model, inputs["prompt_ids"], inputs["prompt_mask"], inputs, dtype=torch.float32)
    own = log_p.detach().gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)
    inputs["old_per_token_logps"] = own + noise[0]
    inputs["sampling_per_token_logps"] = own + noise[1]
    inputs["sampling_per_token_logps"][:, 1] = float("nan")
    ratio = noise[2].exp() if per_token else noise[2].sum(1, keepdim=True).exp()
    ratio[0, 0] = 0.0
    assert inputs["distillation"].mask.any(1).sum() > 2, "or the ratio of 0 leaves little to see"
    inputs["importance_sampling_ratio"] = ratio
    return inputs


def dense_parts(trainer, inputs):
    """Log-probabilities of student and teacher at the sampled tokens, the divergence, and the mask, in float64."""
    model, log_p = dense_logits(trainer.model, inputs["prompt_ids"], inputs["prompt_mask"], inputs)
    teacher = (
        inputs["distillation"].views["privileged"].prompt_ids,
        inputs["distillation"].views["privileged"].prompt_mask,
    )
    with trainer.teacher.teacher_forward(trainer.model) as teacher_forward:
        _, log_q = dense_logits(teacher_forward, *teacher, inputs)
    mask = inputs["completion_mask"].bool() & (inputs["distillation"].views["privileged"].weight > 0).unsqueeze(1)
    divergence = (log_q.exp() * (log_q - log_p)).sum(-1)
    at_label = [x.gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1) for x in (log_p, log_q.detach())]
    return model, *at_label, divergence, mask


def check(trainer, inputs, expected, model):
    """Value and gradients of the trainer's loss."""
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, retaken(inputs))
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-7)
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(weight.grad.double(), gradients[name], rtol=1e-3, atol=1e-5, msg=name)


def moved(make_trainer, tokenizer, **options):
    """A student that has left its teacher."""
    trainer = make_trainer(tiny.model(tokenizer, initializer_range=0.2), per_device_train_batch_size=8, **options)
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return trainer


@pytest.mark.parametrize("clip", [None, 1.2])
@pytest.mark.parametrize("per_token", RATIOS.values(), ids=RATIOS)
def test_trls_correction_multiplies_the_divergence(make_trainer, tokenizer, per_token, clip):
    trainer = moved(make_trainer, tokenizer, distillation_is_clip=clip)
    inputs = disagreeing(trainer, per_token)
    model, own, _, divergence, mask = dense_parts(trainer, inputs)
    weight = inputs["importance_sampling_ratio"].double().expand_as(own)  # old / sampling
    if clip is not None:  # current / old
        weight = weight * (own.detach() - inputs["old_per_token_logps"]).exp().clamp(max=clip)
    check(trainer, inputs, (weight * divergence)[mask].sum() / mask.sum(), model)


def test_without_trls_correction_the_clip_compares_with_the_sampler(make_trainer, tokenizer):
    trainer = moved(make_trainer, tokenizer, distillation_is_clip=1.2)
    inputs = disagreeing(trainer, True)
    del inputs["importance_sampling_ratio"]
    model, own, _, divergence, mask = dense_parts(trainer, inputs)
    gap = (own.detach() - inputs["sampling_per_token_logps"]).nan_to_num(0.0)  # no word, no weight
    check(trainer, inputs, (gap.exp().clamp(max=1.2) * divergence)[mask].sum() / mask.sum(), model)


@pytest.mark.parametrize("per_token", RATIOS.values(), ids=RATIOS)
def test_sampled_tokens_are_corrected_once(make_trainer, tokenizer, per_token):
    trainer = moved(make_trainer, tokenizer, distillation_mode="sampled_token", distillation_alpha=1.0)
    inputs = disagreeing(trainer, per_token)
    del inputs["old_per_token_logps"]  # one update a generation: TRL's own ratio is 1
    trainer.use_vllm = True  # TRL's loss asks this; no engine is needed for it
    model, own, teacher, _, mask = dense_parts(trainer, inputs)
    gap = (teacher - own).detach()
    surrogate = (own - own.detach()).exp() * gap * inputs["importance_sampling_ratio"].double()
    check(trainer, inputs, -surrogate[mask].sum() / mask.sum(), model)


def test_a_mixed_loss_corrects_each_term_once(make_trainer, tokenizer):
    options = {"reward_funcs": length_reward, "policy_weight": 0.7, "distillation_weight": 0.3, "seed": 1}
    trainer = moved(make_trainer, tokenizer, **options)
    inputs = disagreeing(trainer, True)
    inputs["advantages"] = torch.tensor([1.0, -1.0, 0.5, 2.0] * 2, device=device())
    trainer.use_vllm = True
    policy = GRPOTrainer._compute_loss(trainer, trainer.model, inputs).item()
    _, _, _, divergence, mask = dense_parts(trainer, inputs)
    distillation = (inputs["importance_sampling_ratio"] * divergence)[mask].sum() / mask.sum()
    mixed = trainer._compute_loss(trainer.model, retaken(inputs)).item()
    assert mixed == pytest.approx(0.7 * policy + 0.3 * distillation.item(), rel=1e-4)


@pytest.mark.parametrize("per_token", RATIOS.values(), ids=RATIOS)
def test_shuffled_and_reordered_rows_keep_their_ratios(make_trainer, monkeypatch, per_token):
    inner = GRPOTrainer._generate_and_score_completions

    def told_apart(ids):
        return ids.double() / 7 if per_token else ids.double().sum(1, keepdim=True)

    def generate(self, inputs):
        output = inner(self, inputs)
        ids = output["completion_ids"] * output["completion_mask"]
        return output | {"importance_sampling_ratio": told_apart(ids), "sampling_per_token_logps": -ids.double()}

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", generate)
    trainer = make_trainer(gradient_accumulation_steps=4, max_completion_length=6)
    batch_of(trainer)
    for inputs in trainer._buffered_inputs:
        ids = inputs["completion_ids"] * inputs["completion_mask"]
        assert torch.equal(inputs["sampling_per_token_logps"], -ids.double())
        assert torch.equal(inputs["importance_sampling_ratio"], told_apart(ids))


# Lengths


def test_a_prompt_too_long_for_vllm_is_named_before_training(tmp_path, tokenizer):
    args = OPSDConfig(
        str(tmp_path), use_vllm=True, vllm_max_model_length=64, max_completion_length=8, bf16=False, report_to="none"
    )
    rows = [{"prompt": "x" * 56}, {"prompt": "short"}, {"prompt": "y" * 57}]
    data = {"a": Dataset.from_list(rows[:2]), "b": Dataset.from_list(rows)}

    def tokenize(prompts):
        return tokenizer(prompts)["input_ids"]

    check_student_lengths("eval_dataset", data["a"], tokenize, args)
    message = (
        r"Row 2 of `eval_dataset\['b'\]`: the student's prompt has 57 tokens.*`vllm_max_model_length=64`.*Only the"
    )
    with pytest.raises(ValueError, match=message):
        check_student_lengths("eval_dataset", data, tokenize, args)
    args.vllm_mode = "server"  # whose length its own command line sets
    check_student_lengths("eval_dataset", data, tokenize, args)
