# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A method's own factor on the weight of the distillation, at each step from progress and state."""

import pytest
import torch

from conftest import length_reward
from trl_opsd.methods import Method


PLAIN = Method("Plain")
CONSTANT = Method("Constant", options={"factor": 0.3}, distillation_weight=lambda step: step.options["factor"])
LINEAR = Method("Linear", distillation_weight=lambda step: step.progress)
COUNTED = Method(
    "Counted",
    state={"steps": 0.0},
    update_state=lambda summary: {"steps": summary.state["steps"] + 1},
    distillation_weight=lambda step: 1 / (1 + step.state["steps"]),
)

MODES = {
    "full vocabulary": {},
    "full vocabulary, with a reward": {"reward_funcs": length_reward},
    "sampled token": {"distillation_mode": "sampled_token", "distillation_alpha": 1.0},
    "sampled token, with a reward": {
        "distillation_mode": "sampled_token", "distillation_alpha": 1.0, "reward_funcs": length_reward,
    },
}  # fmt: skip


def trained(make_trainer, **options):
    trainer = make_trainer(max_steps=3, gradient_accumulation_steps=2, **options)
    trainer.train()
    names = ("loss", "grad_norm", "self_distillation/divergence")
    logs = [[log[name] for name in names] for log in trainer.state.log_history if "loss" in log]
    return logs, {name: one.detach() for name, one in trainer.model.named_parameters()}


@pytest.mark.parametrize("mode", MODES)
def test_a_constant_factor_is_the_weight_to_the_last_bit(make_trainer, mode):
    one, ours = trained(make_trainer, method="test_distillation_weight.CONSTANT", **MODES[mode])
    other, theirs = trained(make_trainer, distillation_weight=0.3, **MODES[mode])
    assert one == other and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    whole, _ = trained(make_trainer, method="test_distillation_weight.PLAIN", **MODES[mode])
    assert whole[0] != one[0]


@pytest.mark.parametrize("mode", MODES)
def test_both_factors_are_multiplied(make_trainer, mode):
    options = {"method": "test_distillation_weight.CONSTANT", "method_options": {"factor": 0.5}}
    one, ours = trained(make_trainer, distillation_weight=0.5, **options, **MODES[mode])
    other, theirs = trained(make_trainer, distillation_weight=0.25, **MODES[mode])
    assert one == other and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("name", "expected"), [("LINEAR", [0.0, 1 / 3, 2 / 3]), ("COUNTED", [1.0, 1 / 2, 1 / 3])], ids=["progress", "state"]
)
def test_it_follows_progress_and_state(make_trainer, name, expected):
    trainer = make_trainer(method=f"test_distillation_weight.{name}", max_steps=3)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["self_distillation/method_weight"] for log in logs] == pytest.approx(expected)
    for log, weight in zip(logs, expected, strict=True):  # pure distillation: it is the whole loss
        assert log["loss"] == pytest.approx(weight * log["self_distillation/loss"], rel=1e-3, abs=1e-6)


def test_without_it_nothing_is_logged(make_trainer):
    trainer = make_trainer(method="opsd", max_steps=1)
    trainer.train()
    assert "self_distillation/method_weight" not in trainer.state.log_history[0]
