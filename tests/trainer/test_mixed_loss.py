# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The policy term in one pass over the head with the distillation term: TRL's own loss and gradient, plus ours."""

import pytest
import torch
from peft import LoraConfig
from trl import GRPOTrainer

import tiny
from batches import batch_of
from conftest import length_reward, retaken
from devices import device
from families import small_model
from runs import SAMPLED


OPTIONS = {
    "dapo": {"loss_type": "dapo"},
    "grpo": {"loss_type": "grpo"},
    "reference KL": {
        "beta": 0.1, "peft_config": LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    },
    "bnpo": {"loss_type": "bnpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 0.1},
    "luspo, sequence ratio": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "vespo": {"loss_type": "vespo"},
    "entropy bonus": {"entropy_coef": 0.3},
    "high-entropy tokens": {"top_entropy_quantile": 0.5},
    "temperature": {"temperature": 0.7, "distillation_temperature": 1.3},
    "float32 head": {"cast_lm_head_to_fp32": True},
    "weights": {"policy_weight": 0.3, "distillation_weight": 2.0},
    "skipped tokens": {"num_loss_tokens_to_skip": 3},
    "small chunks": {"distillation_chunk_size": 3},
    "lora": {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)},
}  # fmt: skip


def gradients_of(trainer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: param.grad.clone() for name, param in trainer.model.named_parameters() if param.grad is not None}


def off_policy(inputs: dict) -> dict:
    """Old log-probabilities that give ratios on both sides of the clip, and advantages of both signs."""
    generator = torch.Generator().manual_seed(5)
    shape = inputs["completion_mask"].shape
    noise = torch.randn(shape, generator=generator).to(device()) * 0.3
    old, advantages = inputs["old_per_token_logps"] + noise, torch.tensor([1.0, -1.0, 0.5, 2.0], device=device())
    return retaken(inputs | {"old_per_token_logps": old, "advantages": advantages})


def check_sum_of_terms(trainer, inputs: dict) -> None:
    """Value, gradient and metrics of the mixed loss against TRL's loss and a pure run on the same batch."""
    weight, metrics = trainer.policy_weight, trainer._metrics["train"]
    aux, trainer.aux_loss_enabled = trainer.aux_loss_enabled, False  # which no weight multiplies: it is part of `pure`
    policy = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    wanted = gradients_of(trainer, policy)
    wanted_metrics = {name: values[-1] for name, values in metrics.items()}
    trainer.objective.policy_weight, trainer.aux_loss_enabled = 0.0, aux
    pure = trainer._compute_loss(trainer.model, inputs)
    ours = gradients_of(trainer, pure)
    trainer.objective.policy_weight = weight
    mixed = trainer._compute_loss(trainer.model, inputs)
    got = gradients_of(trainer, mixed)

    assert abs(policy.item()) > 1e-4 and abs(pure.item()) > 1e-4
    assert mixed.item() == pytest.approx(weight * policy.item() + pure.item(), rel=1e-4, abs=1e-6)
    for name, gradient in got.items():
        want = weight * wanted[name] + ours[name]
        assert (gradient - want).norm() <= 1e-4 * want.norm() + 1e-7, name
        assert (weight * wanted[name]).norm() > 1e-2 * want.norm() or "embed" in name, f"{name}: nothing to compare"
    for name, value in wanted_metrics.items():
        if not name.startswith("self_distillation/"):
            assert metrics[name][-1] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), name


@pytest.mark.parametrize("case", OPTIONS)
def test_mixed_loss_is_the_sum_of_its_terms(make_trainer, case):
    # More iterations than one, so that TRL stores old log-probabilities
    trainer = make_trainer(reward_funcs=length_reward, num_iterations=2, seed=1, **OPTIONS[case])
    inputs = batch_of(trainer)
    assert 0 < inputs["distillation"].mask.any(1).sum() < 4, "rows with and without a view"
    check_sum_of_terms(trainer, off_policy(inputs))


def test_weight_of_the_verifiers_advantage_in_sampled_token_mode(make_trainer):
    trainer = make_trainer(reward_funcs=length_reward, policy_weight=0.3, **SAMPLED)
    batch = batch_of(trainer)["distillation"]
    stats = {name: torch.randn(batch.mask.shape, device=device()) for name in ("student_logps", "student_entropy")}
    stats |= {name: torch.randn(batch.shares.shape, device=device()) for name in ("teacher_logps", "teacher_entropy")}
    batch.advantages = torch.zeros(4, device=device())
    gap = trainer.objective.sampled_advantages(batch, stats)
    batch.advantages = torch.tensor([1.0, -1.0, 0.5, 2.0], device=device())
    both = trainer.objective.sampled_advantages(batch, stats)
    torch.testing.assert_close(both - gap, 0.3 * batch.advantages.unsqueeze(1).expand_as(gap))


def test_balancing_loss_of_experts(make_trainer, tokenizer):
    options = {"reward_funcs": length_reward, "num_iterations": 2, "seed": 1, "policy_weight": 0.6}
    trainer = make_trainer(small_model("qwen3_moe", tokenizer), **options)
    assert trainer.aux_loss_enabled
    inputs = off_policy(batch_of(trainer))
    check_sum_of_terms(trainer, inputs)
    router = "model.layers.0.mlp.gate.weight"
    with_loss = gradients_of(trainer, trainer._compute_loss(trainer.model, inputs))[router]
    trainer.router_aux_loss_coef = 0.0
    without = gradients_of(trainer, trainer._compute_loss(trainer.model, inputs))[router]
    assert (with_loss - without).norm() > 1e-4 * without.norm(), "the router feels it"


WEIGHTS = [
    *({"policy_weight": weight, "distillation_weight": 1e-9} for weight in (0.0, 0.01, 0.5, 1.0)),
    *({"policy_weight": weight, "distillation_weight": 1e-9, **SAMPLED} for weight in (0.0, 0.5)),
    *({"policy_weight": weight, "distillation_weight": 0.0} for weight in (0.5, 1.0)),
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_balancing_loss_counts_once_whatever_the_weights(make_trainer, tokenizer, weights):
    """Without advantages and with next to no distillation it is all of the loss: TRL's, at a coefficient of 3."""
    options = {"reward_funcs": length_reward, "router_aux_loss_coef": 3.0, "gradient_accumulation_steps": 2}
    trainer = make_trainer(small_model("qwen3_moe", tokenizer), **options, **weights)
    inputs = batch_of(trainer)
    inputs["advantages"] = torch.zeros_like(inputs["advantages"])
    inputs = inputs if trainer.is_plain_grpo else retaken(inputs)
    loss = trainer._compute_loss(trainer.model, inputs)
    got = gradients_of(trainer, loss)
    trainer.router_aux_loss_coef = 3.0
    want = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    assert want.item() > 1.0, "balanced experts would give 3 * 2 / 2"
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    for name, gradient in gradients_of(trainer, want).items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_evaluation_gives_the_same_value(make_trainer):
    trainer = make_trainer(reward_funcs=length_reward, num_iterations=2, seed=1)
    inputs = off_policy(batch_of(trainer))
    want = trainer._compute_loss(trainer.model, inputs).item()
    with torch.no_grad():
        got = trainer._compute_loss(trainer.model, inputs)
    assert not got.requires_grad and got.item() == pytest.approx(want, rel=1e-6)


def test_a_batch_without_a_view_is_trls_loss_alone(make_trainer, tokenizer):
    model = tiny.model(tokenizer)
    trainer = make_trainer(model, reward_funcs=length_reward, num_iterations=2, seed=1)
    inputs = off_policy(batch_of(trainer))
    batch = inputs["distillation"]
    batch.mask, batch.shares = torch.zeros_like(batch.mask), torch.zeros_like(batch.shares)
    want = gradients_of(trainer, GRPOTrainer._compute_loss(trainer, trainer.model, inputs))
    got = gradients_of(trainer, trainer._compute_loss(trainer.model, inputs))
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-6)
