# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Whole training runs: what two of them must have in common, and how one is interrupted."""

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from conftest import length_reward


SAMPLED = {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
LORA_WITH_DROPOUT = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2)
BUFFERED = {  # a generation batch lasts for four steps
    "reward_funcs": length_reward, "gradient_accumulation_steps": 1, "steps_per_generation": 2, "num_iterations": 2,
    "teacher_model_kind": "ema", "save_strategy": "steps", "save_steps": 1, "logging_steps": 3,
}  # fmt: skip


def history(trainer):
    """Every logged number but the times."""
    times = ("runtime", "per_second", "step_time")
    return [{k: v for k, v in log.items() if not any(t in k for t in times)} for log in trainer.state.log_history]


def assert_same_run(one, other):
    """The same logs and weights, to the last bit."""
    assert history(one) == history(other)
    for (name, a), b in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b), name


class Leaves(TrainerCallback):
    """Ends a run after a step, as a kill would: nothing is tidied up."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(make_trainer, step, **options):
    """A run that ends after `step` steps; the folder stays."""
    with pytest.raises(KeyboardInterrupt):
        make_trainer(callbacks=[Leaves(step)], **options).train()


def move(model, scale=0.1):
    """Add noise to what is trained, as if the student had moved away from its start."""
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(scale * torch.randn_like(param))
