# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Values of methods beside those that were published, written down once more: docs/methods.md is made of the code, and
would follow a slip of it.
"""

import re
from pathlib import Path

import pytest
import yaml

from trl_opsd import OPSDConfig
from trl_opsd.methods import method_names, method_of


# Of the config, and after them the method's own options. `teacher` is `teacher_model_kind`, `alpha` is
# `distillation_alpha`; "sampled" and a number are `distillation_mode` and the size of a top-k set
PUBLISHED = {
    "agent_opsd": ("live", "sampled", {}, {"share": 0.5, "bound": 0.2, "decay": 0.95}),
    "antisd": ("live", "sampled", {"distillation_weight": 0.5}, {"warmup": 5, "drop": 0.93}),
    "atesd": ("base", 0.0, {}, {}),
    "avsd": ("base", 0.0, {}, {}),
    "avsd_tokens": ("base", "sampled", {}, {}),
    "beta_opsd": ("base", 0.0, {}, {"share": 0.5}),
    "cgtr": ("snapshot", 0.0, {}, {"every": 20, "margin": 0.0, "tail": 1.5, "truncated": 0.5}),
    "credit": ("live", "sampled", {}, {"share": 1.0}),
    "crisp": ("snapshot", 1.0, {"teacher_sync_steps": 50}, {}),
    "dasd": ("base", 0.5, {}, {"share": 0.2, "repel": 0.1}),
    "edge_opd": ("live", 0.0, {}, {"evidence": 0.0}),
    "egrsd": ("live", "sampled", {}, {"clip": 0.2, "floor": 0.5}),
    "eopd": ("base", 0.0, {}, {"threshold": 0.8, "topk": 16, "clip": 0.2}),
    "feedback_alignment": ("base", 0.0, {}, {}),
    "gates": ("live", "sampled", {}, {"bound": 1.0}),
    "hdpo": ("live", 0.5, {"topk": 64, "distillation_topk_source": "teacher", "distillation_weight": 0.01}, {}),
    "iw_opd": ("base", "sampled", {}, {"gamma": 0.5}),
    "og_opsd": (
        "base",
        0.0,
        {"distillation_view_divergences": {"wrong": "reverse_kl"}},
        {"first": 16, "rise": 0.2},
    ),
    "op2sd": ("base", 0.0, {}, {}),
    "opcd": ("base", 1.0, {"topk": 256, "distillation_stop_gradient": True}, {}),
    "opsd": ("base", 0.0, {"distillation_entry_clip": 0.05}, {}),
    "pi_distill": ("live", "sampled", {}, {"alpha": 0.5, "beta": 0.25, "clip": 0.2, "horizon": "rest"}),
    "purified": ("base", 0.5, {}, {"bound": 10.0, "temperature": 1.0}),
    "pw_opsd": (
        "base",
        0.0,
        {"distillation_entry_clip": 0.05, "distillation_reduction": "sequence_mean"},
        {"least": 0.25, "middle": 0.3, "softness": 0.1},
    ),
    "reopold": ("base", "sampled", {}, {"mixture": 0.1, "share": 0.2, "steps": 50}),
    "retire_opd": ("base", 1.0, {}, {"window": 10, "rate": 0.05, "share": 0.9, "goal": 1.0}),
    "rl_opsd": ("live", 1.0, {"distillation_weight": 0.5}, {}),
    "rlcsd": ("snapshot", "sampled", {"teacher_sync_steps": 10}, {"size": 0.5, "tau": 0.02, "delta": 0.02, "eta": 1.0}),
    "rlrt": ("live", "sampled", {}, {"share": 0.5, "clip": 0.2}),
    "rlsd": (
        "snapshot",
        "sampled",
        {"teacher_sync_steps": 10, "epsilon_high": 0.28},
        {"share": 0.5, "steps": 50, "clip": 0.2},
    ),
    "rltf_fm": ("live", "sampled", {}, {"feedback": 0.1, "gamma": 0.1}),
    "rltf_sd": (
        "live",
        "sampled",
        {},
        {"coefficient": 0.1, "gamma": 0.1, "floor": -5.0, "ramp": 0.0, "baseline": "first"},
    ),
    "rosd": ("ema", 0.5, {"topk": 100, "tail": True, "distillation_is_clip": 2.0, "teacher_update_rate": 0.05}, {}),
    "sd_zero": ("base", 1.0, {}, {"forward": 0.0}),
    "sdar": ("live", "sampled", {"distillation_weight": 0.1}, {"beta": 5.0}),
    "sdft": ("ema", 0.0, {"num_loss_tokens_to_skip": 3, "teacher_update_rate": 0.02}, {}),
    "sdpg": ("live", 1.0, {"distillation_weight": 0.001, "beta": 0.001}, {}),
    "sdpo": ("ema", 0.5, {"topk": 100, "tail": True, "distillation_is_clip": 2.0, "teacher_update_rate": 0.05}, {}),
    "sdpo_trust_region": (
        "base",
        0.5,
        {"topk": 100, "tail": True, "distillation_is_clip": 2.0, "distillation_target": "geometric"},
        {},
    ),
    "shred": ("base", 0.0, {}, {"share": 0.2, "nucleus": 0.0}),
    "sipo": ("live", "sampled", {}, {"bound": 1.0}),
    "skill_sd": ("live", "sampled", {"distillation_weight": 0.001}, {}),
    "srpo": (
        "ema",
        0.5,
        {
            "topk": 100,
            "tail": True,
            "distillation_is_clip": 2.0,
            "teacher_update_rate": 0.05,
            "distillation_reduction": "joint_token_mean",
        },
        {"beta": 1.0},
    ),
    "stop_grad_topk": ("base", 1.0, {"topk": 20, "distillation_stop_gradient": True}, {}),
    "taid": ("base", 0.0, {}, {"start": 0.4, "end": 1.0, "rate": 5e-4, "momentum": 0.99}),
    "targeted_hint": ("live", 0.0, {}, {}),
    "trd": ("base", 0.0, {}, {}),
    "ts_opsd": ("base", 0.0, {"distillation_teacher_temperature": 1.5}, {}),
    "tsd_kd": ("base", 0.9, {}, {"entropy": 1.0, "ranking": 0.1, "candidates": 10, "early": 0.1, "least": 0.1}),
    "vpd": ("live", "sampled", {}, {"beta": 0.1, "momentum": 0.9}),
    "unisd": (
        "ema",
        0.0,
        {"distillation_token_clip": 10.0, "teacher_update_rate": 0.1, "teacher_sync_steps": 10},
        {"agreement": "token", "gamma": 1.0, "contrast": 0.1, "margin": 0.5, "matching": 0.1, "divergence": 1.0},
    ),
}
GROUPS = {"num_generations": 12, "per_device_train_batch_size": 12}  # of two, three or four slots of `turns`
WITHOUT_POLICY = {"shred", "trd", "vpd", "og_opsd", "rosd", "sd_zero", "sdpo", "sdpo_trust_region", "unisd"}


def test_every_method_is_here():
    assert sorted(PUBLISHED) == method_names()


@pytest.mark.parametrize("name", PUBLISHED)
def test_values(name):
    teacher, loss, values, options = PUBLISHED[name]
    config = OPSDConfig("unused", method=name, bf16=False, **GROUPS)
    assert config.teacher_model_kind == teacher and method_of(name).options == options
    sampled, topk = loss == "sampled", values.get("topk")
    wanted = {
        "distillation_mode": "sampled_token" if sampled else "full_logits" if topk is None else "topk_logits",
        "distillation_alpha": 1.0 if sampled else loss,
        "distillation_topk": topk,
        "distillation_topk_source": "student",
        "distillation_add_tail": values.get("tail", name == "hdpo"),
        "policy_weight": 0.0 if name in WITHOUT_POLICY else None,
    }
    unset = dict.fromkeys(("distillation_entry_clip", "distillation_token_clip", "distillation_is_clip"))
    wanted |= unset | {"distillation_weight": 1.0, "distillation_stop_gradient": False, "distillation_target": None}
    wanted |= {option: value for option, value in values.items() if option not in ("topk", "tail")}
    assert {option: getattr(config, option) for option in wanted} == wanted


# Settings that were published, as far as they are known: prompts a step (`batch`), rollouts of each (`group`), learning
# rate, and options as the recipe has them
RUNS = {
    "agent_opsd": (None, 8, 1e-6, {"max_steps": 150, "epsilon": 0.2, "epsilon_high": 0.24, "beta": 0.01}),
    "avsd": (32, 1, 5e-6, {"max_steps": 500, "max_completion_length": 4096, "temperature": 0.7, "top_p": 0.95}),
    "avsd_tokens": (32, 1, 5e-6, {"max_steps": 500, "max_completion_length": 4096, "temperature": 0.7, "top_p": 0.95}),
    "crisp": (32, 1, 1e-6, {"max_completion_length": 8192, "temperature": 1.0}),
    "feedback_alignment": (None, 1, 5e-6, {"lora_r": 64, "lora_alpha": 128}),
    "opcd": (128, 1, 5e-6, {"max_steps": 50, "max_completion_length": 512, "save_steps": 2}),
    "pw_opsd": (None, 1, None, {"max_steps": 150}),
    "purified": (32, 1, 5e-6, {"max_steps": 200, "max_completion_length": 1024, "lora_r": 64}),
    "rl_opsd": (64, 5, 5e-6, {"max_steps": 600, "temperature": 0.75, "num_iterations": 3, "epsilon": 0.2}),
    "pi_distill": (None, 10, 5e-6, {}),
    "rltf_fm": (None, 24, 2e-5, {"lora_r": 32, "method_options": {"feedback": 0.1, "gamma": 0.1}}),
    "rltf_sd": (
        None,
        24,
        2e-5,
        {"lora_r": 32, "method_options": {"coefficient": 0.1, "gamma": 0.1, "floor": -5.0, "ramp": 1.0}},
    ),
    "rosd": (32, 8, 1e-5, {}),
    "sd_zero": (128, 1, 5e-6, {"distillation_topk": 64, "distillation_topk_source": "teacher"}),
    "sdpg": (128, 8, 1e-6, {}),
    "sdpo": (32, 8, 1e-5, {"warmup_steps": 10}),
    "sdpo_trust_region": (32, 8, 1e-5, {"warmup_steps": 10}),
    "shred": (1, 1, 1e-5, {"max_steps": 50}),
    "stop_grad_topk": (None, None, 2e-6, {"lr_scheduler_type": "cosine", "adam_beta2": 0.98}),
    "trd": (
        128,
        1,
        5e-6,
        {"lora_r": 64, "lora_alpha": 128, "lora_dropout": 0.05, "num_train_epochs": 1, "warmup_steps": 0.1}
        | {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "distillation_temperature": 1.0},
    ),
    "tsd_kd": (16, 1, 5e-6, {"num_train_epochs": 3, "max_completion_length": 1024}),
    "vpd": (None, 8, 1e-6, {"method_options": {"beta": 0.1}}),
    "unisd": (None, None, 2e-5, {"num_train_epochs": 1, "lr_scheduler_type": "cosine", "temperature": 0.7}),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_papers_recipe(name):
    batch, group, rate, options = RUNS[name]
    text = (Path(__file__).parents[2] / "recipes" / "methods" / f"{name}_paper.yaml").read_text()
    recipe = yaml.safe_load(text)
    processes = int(re.search(r"--num_processes (\d+)", text)[1])
    rollouts = processes * recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"]
    if batch is not None:
        assert rollouts == batch * group
    assert group in (None, recipe["num_generations"]) and rate in (None, recipe["learning_rate"])
    assert {option: recipe[option] for option in options} == options


def source(name):
    return method_of(name).defaults["privileged_source"]


def test_contexts():
    """What is published of them: whose answers, how many, and who reads."""
    right, wrong = (next(iter(one.values())) for one in source("rlcsd")["all_of"])
    assert (right["choice"], wrong["count"]) == ("random", 4)
    start, current = (one["sibling"] for one in source("sdpo_trust_region")["all_of"])
    assert (start["weight"], current["weight"], "reader" in start, current["reader"]) == (0.95, 0.05, False, "live")
    assert source("hdpo")["when"]["condition"] == "group_failed"
    assert source("targeted_hint")["when"]["condition"] == {"group_reward_below": 0.2}
    (hint,) = (source("targeted_hint")["when"]["source"]["when"][key] for key in ("source",))
    assert hint["turn_hint"]["policy"] is False
    assert source("feedback_alignment") == {"critic": {"schema": "steps", "author": "teacher"}}
    assert source("srpo") == {"sibling": {"skip_successes": True, "policy": False}}
    assert source("rlrt") == {"when": {"condition": "succeeded", "source": "sibling"}}
    by_success = [(one["when"]["condition"], one["when"]["source"]) for one in source("og_opsd")["all_of"]]
    assert by_success == [("succeeded", {"column": {"name": "right"}}), ("failed", {"column": {"name": "wrong"}})]
    shares = [part["exposure"]["share"] for part in source("avsd")["all_of"][1:]]
    assert shares == [0.5, 0.0] and source("avsd") == source("avsd_tokens")
