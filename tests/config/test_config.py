# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`OPSDConfig` by itself, on the command line, and the weight of the policy term that the trainer makes of it."""

import copy
import inspect
import json
import pickle
import re
from dataclasses import fields

import numpy as np
import pytest
import yaml
from datasets import Dataset
from trl import GRPOConfig, TrlParser
from trl.chat_template_utils import qwen3_chat_template

import tiny
from conftest import length_reward
from trl_opsd import OPSDConfig, OPSDParser, OPSDTrainer
from trl_opsd.config.validation import CHOICES, DEPENDENT
from trl_opsd.losses import DIVERGENCES, TARGETS, DivergenceSpec
from trl_opsd.losses.divergence_spec import ENTRY_CLIP_MODES, TOPK_SOURCES


OWN = [item for item in fields(OPSDConfig) if item.name not in {inherited.name for inherited in fields(GRPOConfig)}]
ALL_CHOICES = CHOICES | {
    "distillation_divergence": tuple(DIVERGENCES),
    "distillation_topk_source": TOPK_SOURCES,
    "distillation_target": tuple(TARGETS),
    "distillation_entry_clip_mode": ENTRY_CLIP_MODES,
}

DEFAULTS = {
    "method": None,
    "method_options": None,
    "policy_weight": None,
    "distillation_weight": 1.0,
    "distillation_divergence": None,
    "distillation_alpha": 0.0,
    "distillation_mode": "full_logits",
    "distillation_topk": None,
    "distillation_topk_source": "student",
    "distillation_add_tail": False,
    "distillation_stop_gradient": False,
    "distillation_target": None,
    "distillation_entry_clip": None,
    "distillation_entry_clip_mode": "signed",
    "distillation_token_clip": None,
    "distillation_is_clip": None,
    "distillation_temperature": None,
    "distillation_teacher_temperature": None,
    "distillation_view_divergences": None,
    "distillation_reduction": "token_mean",
    "num_loss_tokens_to_skip": 0,
    "distillation_chunk_size": None,
    "teacher_model_kind": "base",
    "teacher_update_rate": 0.05,
    "teacher_sync_steps": 1,
    "teacher_model_name_or_path": None,
    "teacher_model_init_kwargs": None,
    "teacher_adapters": None,
    "teacher_offload": False,
    "teacher_model_server_url": None,
    "teacher_server_options": None,
    "teacher_self_test": True,
    "teacher_max_length": None,
    "teacher_overlong": "error",
    "teacher_generation_prompt": "student",
    "teacher_share_prefix": True,
    "privileged_source": None,
    "success_reward_threshold": 1.0,
    "eval_teacher_prompts": 0,
    "log_tokens": 0,
    "log_tokens_probe": 0,
    "privileged_on_error": "error",
    "privileged_timeout": None,
    "log_privileged_context": False,
    "leak_ngram_size": 8,
    "leak_phrases": None,
    "turns": None,
    "privileged_column": "privileged_context",
    "privileged_template": "{privileged_context}",
    "privileged_place": "after_user",
    "student_chat_template_kwargs": None,
    "teacher_chat_template_kwargs": None,
}

TOPK = {"distillation_mode": "topk_logits", "distillation_topk": 5}
SAMPLED = {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}
CHECKPOINT = {"teacher_model_kind": "checkpoint", "teacher_model_name_or_path": "some/model"}


@pytest.fixture
def config(tmp_path):
    def make(**options):
        arguments = {"output_dir": str(tmp_path), "num_generations": 1, "bf16": False, "report_to": "none"}
        return OPSDConfig(**(arguments | options))

    return make


def refused(config, *named, **options):
    """The error of these options, which names all of `named` and says what to do."""
    with pytest.raises(ValueError) as caught:
        config(**options)
    message = str(caught.value)
    for name in named:
        assert name in message, message
    return message


# Values


def test_defaults(config):
    assert {item.name for item in OWN} == set(DEFAULTS)
    built = config()
    assert {name: getattr(built, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("name", ALL_CHOICES)
def test_a_choice_that_does_not_exist(config, name):
    owner = TOPK if name == "distillation_topk_source" else {}
    message = refused(config, f"`{name}`", "'no_such'", **owner, **{name: "no_such"})
    assert all(repr(choice) in message for choice in ALL_CHOICES[name]), "the way out is one of the choices"


AT_LEAST_ZERO = ["policy_weight", "distillation_weight", "num_loss_tokens_to_skip", "leak_ngram_size"]
ABOVE_ZERO = [
    "distillation_entry_clip",
    "distillation_token_clip",
    "distillation_is_clip",
    "distillation_temperature",
    "distillation_topk",
    "distillation_chunk_size",
    "teacher_sync_steps",
    "teacher_max_length",
]


# What else must be set for the option to be read
OWNERS = {"distillation_topk": TOPK, "teacher_sync_steps": {"teacher_model_kind": "ema"}}


INTEGERS = [
    "distillation_topk",
    "distillation_chunk_size",
    "num_loss_tokens_to_skip",
    "teacher_sync_steps",
    "teacher_max_length",
    "leak_ngram_size",
]


def allowed(name):
    """Words of the error for the numbers that an option may have."""
    if name in INTEGERS:
        return f"whole number of at least {0 if name in AT_LEAST_ZERO else 1}"
    return "finite number of at least 0" if name in AT_LEAST_ZERO else "finite number above 0"


@pytest.mark.parametrize("name", AT_LEAST_ZERO + ABOVE_ZERO)
def test_a_number_out_of_range(config, name):
    for value in (-1, -0.5, float("nan"), float("inf"), "1", True):
        owner = OWNERS.get(name, {}) | {name: value}
        refused(config, f"`{name}` must be a {allowed(name)}", repr(value), **owner)


@pytest.mark.parametrize("name", ABOVE_ZERO)
def test_zero_where_it_means_nothing(config, name):
    refused(config, f"`{name}` must be a {allowed(name)}", "got 0", **(OWNERS.get(name, {}) | {name: 0}))


@pytest.mark.parametrize("name", AT_LEAST_ZERO)
def test_zero_where_it_means_off(config, name):
    assert getattr(config(num_generations=2, **{name: 0}), name) == 0


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
@pytest.mark.parametrize("name", ["distillation_alpha", "teacher_update_rate"])
def test_a_share_outside_zero_and_one(config, name, value):
    refused(config, f"`{name}` must be a finite number", repr(value), **{name: value})


@pytest.mark.parametrize("name", INTEGERS)
def test_a_count_that_is_no_whole_number(config, name):
    """It would only fail, or be read as something else, once the run is under way."""
    for value in (2.5, 3.0):
        refused(config, f"`{name}` must be a {allowed(name)}", repr(value), **(OWNERS.get(name, {}) | {name: value}))


KINDS = [
    ({"success_reward_threshold": "1"}, "a finite number, got '1' (YAML takes 1e-3 for a text"),
    ({"success_reward_threshold": float("nan")}, "a finite number, got nan"),
    ({"success_reward_threshold": None}, "a finite number, got None"),
    ({"privileged_timeout": float("inf")}, "a finite number above 0 or None, got inf"),
    ({"privileged_timeout": 0}, "a finite number above 0 or None, got 0"),
    ({"teacher_share_prefix": "no"}, "true or false, got 'no'"),
    ({"log_privileged_context": "false"}, "true or false, got 'false'"),
    ({"distillation_add_tail": 1, **TOPK}, "true or false, got 1"),
    ({"privileged_column": ["a", "b"]}, "text, got ['a', 'b']"),
    ({"privileged_template": None}, "text, got None"),
    ({"privileged_source": ["column"]}, "a name, or a mapping with one name as its key"),
    ({"method_options": "share"}, "a mapping or None, got 'share'"),
    ({"teacher_chat_template_kwargs": ["a"]}, "a mapping"),
    ({"method": 3}, "text, got 3"),
    ({"distillation_mode": 3}, "one of ['full_logits', 'topk_logits', 'sampled_token'], got 3"),
]


@pytest.mark.parametrize(("options", "text"), KINDS, ids=str)
def test_a_value_of_another_kind(config, options, text):
    refused(config, f"`{next(iter(options))}` must be {text}", **options)


def test_a_number_of_another_library_is_one(config):
    numbers = {"teacher_model_kind": "ema", "teacher_sync_steps": np.int64(3), "teacher_update_rate": np.float32(0.5)}
    assert config(**numbers).teacher_sync_steps == 3


@pytest.mark.parametrize("skip", [8, 9, 10**6])
def test_no_token_is_left_to_distil(config, skip):
    options = {"max_completion_length": 8, "num_loss_tokens_to_skip": skip}
    refused(config, f"`num_loss_tokens_to_skip={skip}`", "`max_completion_length=8`", "no token", **options)
    assert config(**(options | {"num_loss_tokens_to_skip": 7})).num_loss_tokens_to_skip == 7
    assert config(**options, distillation_weight=0.0, num_generations=2, policy_weight=1.0), "GRPO skips none"


@pytest.mark.parametrize("alpha", [1e-30, 1e-8, 1 - 1e-9])
def test_an_alpha_that_float32_takes_for_an_end(config, alpha):
    refused(
        config, f"`distillation_alpha={alpha!r}`", "would be 0", "`distillation_alpha=0.0`", distillation_alpha=alpha
    )


def test_an_ema_teacher_that_never_moves(config):
    options = {"teacher_model_kind": "ema", "teacher_update_rate": 0.0}
    refused(config, "`teacher_update_rate=0`", "teacher_model_kind='base'", **options)


@pytest.mark.parametrize("template", ["", "Hint:", "{privileged}", "{{privileged_context }}", "privileged_context"])
def test_a_template_without_its_placeholder(config, template):
    refused(config, "`privileged_template`", "{privileged_context}", repr(template), privileged_template=template)


# Combinations

# For every option that only one setting reads: a value of its own, and what else that setting needs
SET = {
    "distillation_topk": (5, {}),
    "distillation_topk_source": ("teacher", {"distillation_topk": 5}),
    "distillation_add_tail": (True, {"distillation_topk": 5}),
    "distillation_stop_gradient": (True, {"distillation_topk": 5, "distillation_alpha": 1.0}),
    "distillation_target": ("geometric", {}),
    "distillation_entry_clip": (0.1, {}),
    "distillation_token_clip": (0.1, {}),
    "distillation_temperature": (2.0, {}),
    "distillation_is_clip": (2.0, {}),
    "distillation_reduction": ("sequence_mean", {}),
    "distillation_view_divergences": ({"wrong": "reverse_kl"}, {}),
    "teacher_offload": (True, {}),
    "teacher_update_rate": (0.1, {}),
    "teacher_sync_steps": (5, {}),
    "teacher_model_name_or_path": ("some/model", {}),
    "teacher_model_init_kwargs": ({"dtype": "float32"}, {"teacher_model_name_or_path": "some/model"}),
    "teacher_adapters": ({"privileged": "some/adapter"}, {}),
    "teacher_model_server_url": (["http://localhost:1"], SAMPLED),
    "teacher_server_options": ({"retries": 1}, {**SAMPLED, "teacher_model_server_url": ["http://localhost:1"]}),
}
COMPANIONS = {
    "distillation_mode": {"sampled_token": {"distillation_alpha": 1.0}},
    "teacher_model_kind": {
        "snapshot": {"teacher_sync_steps": 2},
        "checkpoint": {"teacher_model_name_or_path": "some/model"},
    },
}
PAIRS = [(name, owner, value) for name, _, owner, _ in DEPENDENT for value in CHOICES[owner]]


def test_every_dependent_option_is_covered():
    assert [name for name, *_ in DEPENDENT] == list(SET)
    assert all(DEFAULTS[name] == default for name, default, *_ in DEPENDENT)


@pytest.mark.parametrize(("name", "owner", "owner_value"), PAIRS, ids="-".join)
def test_an_option_that_its_owner_does_not_read(config, name, owner, owner_value):
    readers = next(values for dependent, _, _, values in DEPENDENT if dependent == name)
    value, needs = SET[name]
    options = COMPANIONS.get(owner, {}).get(owner_value, {}) | {owner: owner_value, name: value}
    if owner_value in readers:
        extra = {"distillation_topk": 5} if owner_value == "topk_logits" else {}
        built = config(**(extra | needs | options))
        assert getattr(built, name) == value and getattr(built, owner) == owner_value
    else:
        message = refused(config, f"`{name}={value!r}`", f"`{owner}`", repr(owner_value), **options)
        assert all(f"`{owner}={reader!r}`" in message for reader in readers), "the way out names who reads it"


COMBINATIONS = [
    ({"distillation_mode": "topk_logits"}, ["`distillation_mode='topk_logits'`", "`distillation_topk`"]),
    (
        {**TOPK, "distillation_stop_gradient": True},
        ["`distillation_stop_gradient`", "`distillation_alpha=1.0`", "`distillation_add_tail`"],
    ),
    ({**TOPK, "distillation_topk": 1}, ["`distillation_topk=1`", "distillation_add_tail=True", "larger"]),
    ({"teacher_model_kind": "snapshot"}, ["`teacher_model_kind='snapshot'`", "`teacher_sync_steps`", "'live'"]),
    (
        {"distillation_is_clip": 2.0, "distillation_temperature": 0.5},
        ["`distillation_is_clip`", "`distillation_temperature=0.5`", "Leave one of them out"],
    ),
    ({**SAMPLED, "distillation_alpha": 0.5}, ["`distillation_mode='sampled_token'`", "`distillation_alpha=1.0`"]),
    (
        {"distillation_mode": "sampled_token", "distillation_divergence": "forward_kl"},
        ["`distillation_mode='sampled_token'`", "`distillation_divergence='reverse_kl'`", "got 0.0 and 'forward_kl'"],
    ),
    ({"distillation_divergence": "jsd"}, ["`distillation_divergence='jsd'`", "`distillation_alpha` between 0 and 1"]),
    (
        {"distillation_divergence": "skew_kl", "distillation_alpha": 1.0},
        ["`distillation_divergence='skew_kl'`", "`distillation_alpha` between 0 and 1", "got 1.0"],
    ),
    (
        {"distillation_divergence": "reverse_kl", "distillation_alpha": 0.5},
        ["`distillation_divergence='reverse_kl'`", "`distillation_alpha=0.5`", "leave `distillation_alpha` out"],
    ),
    (
        {**TOPK, "distillation_stop_gradient": True, "distillation_alpha": 1.0, "distillation_add_tail": True},
        ["`distillation_stop_gradient`", "`distillation_divergence='reverse_kl'`", "neither `distillation_add_tail`"],
    ),
    *(
        (
            {**SAMPLED, "loss_type": loss_type, "importance_sampling_level": "sequence"},
            ["`distillation_mode='sampled_token'`", f"'{loss_type}'", "Set `importance_sampling_level='token'`"],
        )
        for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo")
    ),
    ({"temperature": 0.0}, ["`temperature` must be a finite number above 0"]),
    ({"distillation_mode": "sampled_token"}, ["`distillation_mode='sampled_token'`", "`distillation_alpha=1.0`"]),
    ({"distillation_entry_clip_mode": "non_negative"}, ["`distillation_entry_clip_mode`", "`distillation_entry_clip`"]),
    ({"teacher_model_kind": "checkpoint"}, ["`teacher_model_kind='checkpoint'`", "`teacher_model_name_or_path`"]),
    ({"policy_weight": 1.0, "distillation_weight": 0.0, "num_generations": 2, "log_tokens": 2}, ["`log_tokens=2`"]),
    ({"distillation_view_divergences": {"a": "kl"}}, ["`distillation_view_divergences`", "'a'", "'kl'", "reverse_kl"]),
    (
        {"distillation_view_divergences": {"a": "reverse_kl"}, "distillation_target": "geometric"},
        ["`distillation_view_divergences`", "`distillation_target`", "leave out one"],
    ),
    ({"distillation_view_divergences": {"a": "jsd"}}, ["`distillation_divergence='jsd'` needs `distillation_alpha`"]),
    ({"log_tokens_probe": 5}, ["`log_tokens_probe=5`", "Set `log_tokens`"]),
    ({"policy_weight": 0.0, "distillation_weight": 0.0}, ["`policy_weight`", "`distillation_weight`", "both 0"]),
    ({"policy_weight": 1.0}, ["`num_generations=1`", "at least 2", "policy_weight=0.0"]),
    ({"policy_weight": 0.0, "beta": 0.1}, ["`beta=0.1`", "`policy_weight`", "`beta=0.0`"]),
    ({"policy_weight": 0.0, "entropy_coef": 0.1}, ["`entropy_coef=0.1`", "`policy_weight`", "`entropy_coef=0.0`"]),
    ({"leak_phrases": "hint"}, ["`leak_phrases`", "list of texts", "'hint'"]),
    ({"leak_phrases": ["hint", "?!"]}, ["`leak_phrases`", "'?!'", "Leave it out"]),
    ({"leak_phrases": ["hint", 3]}, ["`leak_phrases`", "a list of texts", "got ['hint', 3]"]),
    (
        {"push_to_hub": True, "hub_strategy": "checkpoint"},
        ["`hub_strategy='checkpoint'`", "`hub_strategy='every_save'`", "`hub_private_repo=True`"],
    ),
    ({"push_to_hub": True, "hub_strategy": "all_checkpoints"}, ["`hub_strategy='all_checkpoints'`", "teacher reads"]),
]


@pytest.mark.parametrize(("options", "named"), COMBINATIONS, ids=lambda value: "-".join(value))
def test_what_does_not_go_together(config, options, named):
    refused(config, *named, **options)


GOOD = [
    {**TOPK, "distillation_topk": 1, "distillation_add_tail": True},
    {"teacher_model_kind": "snapshot", "teacher_sync_steps": 2},
    {"distillation_is_clip": 2.0, "temperature": 0.5, "distillation_temperature": 0.5},
    SAMPLED,
    {**SAMPLED, "loss_type": "cispo", "importance_sampling_level": "sequence"},
    {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    {**SAMPLED, "importance_sampling_level": "sequence", "num_generations": 2, "distillation_weight": 0.0},
    {**SAMPLED, "policy_weight": 0.0, "beta": 0.1},
    {**SAMPLED, "policy_weight": 0.0, "entropy_coef": 0.1},
    {"distillation_entry_clip": 0.1, "distillation_entry_clip_mode": "non_negative"},
    {"distillation_token_clip": 0.1},
    {"distillation_divergence": "reverse_kl"},
    {"distillation_divergence": "skew_kl", "distillation_alpha": 0.1},
    {"distillation_mode": "sampled_token", "distillation_divergence": "reverse_kl"},
    {**TOPK, "distillation_stop_gradient": True, "distillation_divergence": "reverse_kl"},
    {"policy_weight": 1.0, "num_generations": 2, "distillation_weight": 0.0},
    {"leak_phrases": []},
    {"push_to_hub": True, "hub_strategy": "checkpoint", "hub_private_repo": True},
    {"push_to_hub": True, "hub_strategy": "checkpoint", "num_generations": 2, "distillation_weight": 0.0},
    {"push_to_hub": True, "hub_strategy": "every_save"},
    CHECKPOINT,
]


@pytest.mark.parametrize("options", GOOD, ids=lambda options: "-".join(options))
def test_what_goes_together(config, options):
    built = config(**options)
    assert {name: getattr(built, name) for name in options} == options


# The spec of the loss

SPECS = [
    ({}, DivergenceSpec("forward_kl")),
    ({"distillation_alpha": 1.0}, DivergenceSpec("reverse_kl")),
    ({"distillation_alpha": 0.3}, DivergenceSpec("jsd", 0.3)),
    ({"distillation_divergence": "jsd", "distillation_alpha": 0.3}, DivergenceSpec("jsd", 0.3)),
    ({"distillation_divergence": "reverse_kl", "temperature": 0.7}, DivergenceSpec("reverse_kl", temperature=0.7)),
    ({"temperature": 0.7, "distillation_temperature": 1.3}, DivergenceSpec(temperature=1.3)),
    (
        {"distillation_entry_clip": 0.1, "distillation_entry_clip_mode": "non_negative", "distillation_is_clip": 2.0},
        DivergenceSpec(entry_clip=0.1, entry_clip_mode="non_negative", is_clip=2.0),
    ),
    (
        {
            **TOPK,
            "distillation_topk_source": "union",
            "distillation_add_tail": True,
            "distillation_target": "geometric",
        },
        DivergenceSpec(topk=5, topk_source="union", add_tail=True, target="geometric"),
    ),
    (
        {**TOPK, "distillation_stop_gradient": True, "distillation_alpha": 1.0, "distillation_token_clip": 3.0},
        DivergenceSpec("reverse_kl", topk=5, stop_gradient=True, token_clip=3.0),
    ),
]


@pytest.mark.parametrize(("options", "spec"), SPECS, ids=str)
def test_the_spec_that_a_config_describes(config, options, spec):
    assert config(**{"temperature": 1.0} | options).divergence_spec == spec


def test_every_option_of_the_spec_is_one_of_the_config():
    rest = {item.name for item in fields(DivergenceSpec)} - {item.name.removeprefix("distillation_") for item in OWN}
    assert rest == {"token_weight", "needs_all_tokens", "auxiliary_loss"}, "what a method alone sets"


@pytest.mark.parametrize("method", ["sdft", "crisp", "tsd_kd"])  # whose alpha is 0, 1 and between
def test_a_divergence_takes_the_place_of_a_methods(config, method):
    name = "reverse_kl" if method == "sdft" else "forward_kl"
    assert config(method=method, distillation_divergence=name).divergence_spec.divergence == name
    skewed = config(method=method, distillation_divergence="skew_kl", distillation_alpha=0.2).divergence_spec
    assert (skewed.divergence, skewed.alpha) == ("skew_kl", 0.2)
    refused(config, "`distillation_alpha=0.2`", method=method, distillation_divergence=name, distillation_alpha=0.2)


# One completion a prompt


def test_one_generation_is_a_plain_int_afterwards(config):
    """`GRPOConfig` refuses 1; `_SingleGeneration` passes its check and must leave no trace."""
    built = config()
    assert type(built.num_generations) is int and built.num_generations == 1
    assert built.num_generations_eval == 1
    assert built.num_generations < 2
    assert built.to_dict()["num_generations"] == 1
    assert json.loads(built.to_json_string())["num_generations"] == 1
    for other in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert type(other.num_generations) is int and other == built


def test_completions_of_a_prompt_by_default(tmp_path):
    """TRL's group with a reward; one without, where a completion is compared with no other."""

    def made(**options):
        return OPSDConfig(str(tmp_path), report_to="none", per_device_train_batch_size=4, **options)

    assert made().num_generations is None, "the trainer knows whether there is a reward"
    one = made()
    one.resolve_num_generations(has_groups=False)
    assert one.num_generations == 1
    with pytest.raises(ValueError, match=r"8 by default where there is a reward, and 4 completions of a batch"):
        made().resolve_num_generations(has_groups=True)
    for options in ({"policy_weight": 1.0}, {"distillation_weight": 0.0}):
        with pytest.raises(ValueError, match=r"must be divisible by num_generations \(8\)"):
            made(**options)
        assert made(gradient_accumulation_steps=2, **options).num_generations == 8
    evaluates = made(gradient_accumulation_steps=2, eval_strategy="steps", per_device_eval_batch_size=4)
    with pytest.raises(ValueError, match=r"4 completions of a batch .`per_device_eval_batch_size`"):
        evaluates.resolve_num_generations(has_groups=True)
    given = made(num_generations=2)
    given.resolve_num_generations(has_groups=True)
    assert given.num_generations == 2


@pytest.mark.parametrize("reward_funcs", [None, length_reward])
def test_the_trainer_resolves_them(tmp_path, tokenizer, rows, reward_funcs):
    args = OPSDConfig(str(tmp_path), report_to="none", max_completion_length=4, gradient_checkpointing=False)
    trainer = OPSDTrainer(
        tiny.model(tokenizer), reward_funcs, args, Dataset.from_list(rows * 8), processing_class=tokenizer
    )
    assert trainer.num_generations == trainer.num_generations_eval == (1 if reward_funcs is None else 8)


@pytest.mark.parametrize("possible", [False, True])
def test_bf16_is_that_of_the_device(tmp_path, monkeypatch, possible):
    for module in ("trl_opsd.config.opsd_config", "transformers.training_args"):
        monkeypatch.setattr(f"{module}.is_torch_bf16_gpu_available", lambda: possible)
    assert OPSDConfig(str(tmp_path)).bf16 is possible
    assert OPSDConfig(str(tmp_path), use_cpu=True).bf16 is False
    assert OPSDConfig(str(tmp_path), bf16=True, use_cpu=True).bf16 is True, "slow, and what was asked for"
    if not possible:
        with pytest.raises(ValueError, match=r"`bf16=True` needs a device that computes in it.*Leave `bf16` out"):
            OPSDConfig(str(tmp_path), bf16=True)


def test_a_config_survives_its_own_dict(config):
    built = config(teacher_chat_template_kwargs={"enable_thinking": True}, **TOPK)
    again = OPSDConfig(**{item.name: getattr(built, item.name) for item in fields(OPSDConfig) if item.init} | REBUILD)
    assert again.to_dict() == built.to_dict()


PLANTED = "XYZZY-4711"
TEMPLATES = [
    ("{privileged_context}", "{privileged_context}"),
    (PLANTED + ": {privileged_context}", "[...]{privileged_context}"),
    ("{privileged_context}" + PLANTED, "{privileged_context}[...]"),
    (PLANTED + "{privileged_context}" + PLANTED, "[...]{privileged_context}[...]"),
]


@pytest.mark.parametrize(("template", "shown"), TEMPLATES)
def test_what_others_read_of_a_template(config, template, shown):
    built = config(privileged_template=template)
    assert built.to_dict()["privileged_template"] == built.public().privileged_template == shown
    assert PLANTED not in built.to_json_string() and PLANTED not in str(built.to_sanitized_dict())
    assert built.privileged_template == template, "of the copy alone"


def test_what_others_read_of_a_source(config):
    """Its names, and how it is composed; nothing of its arguments."""
    hint = {"column": {"column": PLANTED, "template": PLANTED + "{privileged_context}"}}
    source = {"first_of": [{"when": {"condition": {"probability": 0.5}, "source": hint}}, {"fixed": PLANTED}]}
    built = config(privileged_source={"with_baselines": {"source": {"all_of": [source, "column"]}}})
    expected = "with_baselines(all_of(first_of(when(probability, column), fixed), column))"
    assert built.to_dict()["privileged_source"] == built.public().privileged_source == expected
    assert PLANTED not in built.to_json_string()
    assert built.privileged_source["with_baselines"]["source"]["all_of"][0] == source


# TRL refuses a config that has both of two options, one of which it fills in from the other
REBUILD = {"generation_batch_size": None}


def test_grpo_config_still_refuses_one_generation(tmp_path):
    """If this fails, TRL allows 1 by itself: delete `_SingleGeneration`."""
    with pytest.raises(ValueError, match="at least 2 generations"):
        GRPOConfig(str(tmp_path), num_generations=1, bf16=False)


def test_no_generation_at_all_is_refused(config):
    with pytest.raises((ValueError, ZeroDivisionError)):
        config(num_generations=0)


@pytest.mark.parametrize("eval_generations", [None, 2])
def test_generations_of_evaluation_are_kept(config, eval_generations):
    built = config(num_generations_eval=eval_generations)
    assert built.num_generations_eval == (eval_generations or 1)


# The weight of the policy term


class Bare:
    """An environment without a reward."""

    def reset(self, **kwargs):
        return None


class Rewarding(Bare):
    def get_reward(self):
        return 1.0


def with_environment(make_trainer, environment, **options):
    """The tiny tokenizer with a template that renders tool calls, as TRL wants for environments."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = qwen3_chat_template
    options = {"num_generations": 2} | options
    return make_trainer(environment_factory=environment, processing_class=tokenizer, **options)


REWARD_CASES = [
    ({}, None, 0.0),
    ({"reward_funcs": length_reward}, None, 1.0),
    ({"reward_funcs": [length_reward]}, None, 1.0),
    ({"reward_funcs": []}, None, 0.0),
    ({"reward_funcs": length_reward, "policy_weight": 0.25}, None, 0.25),
    ({"reward_funcs": length_reward, "policy_weight": 0.0}, None, 0.0),
    ({}, Rewarding, 1.0),
    ({}, Bare, 0.0),
    ({"reward_funcs": length_reward}, Rewarding, 1.0),
    ({"reward_funcs": length_reward}, Bare, 1.0),
    ({"policy_weight": 0.25}, Rewarding, 0.25),
    ({}, {"one": Bare, "other": Rewarding}, 1.0),
    ({}, {"one": Bare}, 0.0),
]


@pytest.mark.parametrize(("options", "environment", "expected"), REWARD_CASES)
def test_weight_of_the_policy_term(make_trainer, options, environment, expected):
    make = make_trainer if environment is None else lambda **o: with_environment(make_trainer, environment, **o)
    trainer = make(**options)
    assert trainer.policy_weight == expected
    assert trainer.args.policy_weight == options.get("policy_weight"), "the user's config is left as it was"
    names = {"reward_funcs": "length_reward"} if options.get("reward_funcs") else {}
    own = [environment] if isinstance(environment, type) else list((environment or {}).values())
    expected_names = [*names.values(), *("Rewarding" for kind in own if kind is Rewarding)]
    assert trainer.reward_func_names == (expected_names or ["no_reward"])
    assert len(trainer.reward_weights) == len(trainer.reward_funcs) == len(trainer.reward_func_names)


@pytest.mark.parametrize("reward_funcs", [None, length_reward])
def test_an_environment_reward_counts_without_distillation_too(make_trainer, reward_funcs):
    """`distillation_weight=0.0` makes the trainer GRPOTrainer, whose loss has the weight 1."""
    rewards = {} if reward_funcs is None else {"reward_funcs": reward_funcs}
    trainer = with_environment(make_trainer, Rewarding, distillation_weight=0.0, **rewards)
    assert trainer.policy_weight == 1.0


# On the command line and in recipes

SAMPLE_VALUES = {
    "method": "rlsd",
    "method_options": {"share": 0.25},
    "distillation_stop_gradient": True,
    "distillation_target": "arithmetic",
    "policy_weight": 0.5,
    "distillation_weight": 0.5,
    "distillation_divergence": "reverse_kl",
    "distillation_alpha": 0.25,
    "distillation_mode": "topk_logits",
    "distillation_topk": 7,
    "distillation_topk_source": "teacher",
    "distillation_add_tail": True,
    "distillation_entry_clip": 0.05,
    "distillation_entry_clip_mode": "non_negative",
    "distillation_token_clip": 0.1,
    "distillation_is_clip": 2.0,
    "distillation_temperature": 0.5,
    "distillation_teacher_temperature": 0.25,
    "distillation_view_divergences": {"wrong": "reverse_kl"},
    "distillation_reduction": "sequence_mean",
    "num_loss_tokens_to_skip": 3,
    "distillation_chunk_size": 64,
    "teacher_model_kind": "ema",
    "teacher_update_rate": 0.01,
    "teacher_sync_steps": 4,
    "teacher_model_name_or_path": "some/model",
    "teacher_model_init_kwargs": {"revision": "main"},
    "teacher_adapters": {"math": "some/adapter", "code": {"folder": "other", "scale": 0.5}},
    "teacher_model_server_url": ["http://localhost:8001", "https://teacher:8002/v1"],
    "teacher_server_options": {"model": "qwen", "concurrency": 8, "timeout": 60.0, "live": False},
    "teacher_max_length": 99,
    "teacher_overlong": "drop_view",
    "teacher_generation_prompt": "own",
    "teacher_offload": True,
    "teacher_self_test": False,
    "eval_teacher_prompts": 3,
    "log_tokens": 2,
    "log_tokens_probe": 5,
    "teacher_share_prefix": False,
    "privileged_source": {"first_of": [{"column": {"column": "hint", "place": "system"}}, {"fixed": "Be brief."}]},
    "success_reward_threshold": 0.5,
    "privileged_on_error": "skip",
    "privileged_timeout": 2.5,
    "log_privileged_context": True,
    "leak_ngram_size": 5,
    "leak_phrases": ["the notes", "hint"],
    "turns": {"slots": ["first", "distil"], "source": {"with_attempt": "critic"}, "when": {"probability": 0.5}},
    "privileged_column": "hint",
    "privileged_template": 'A "hint": {privileged_context}, 100 %',
    "privileged_place": "system",
    "student_chat_template_kwargs": {"enable_thinking": False},
    "teacher_chat_template_kwargs": {"enable_thinking": True, "depth": {"a": [1, None]}},
}
# What else must be set for an option to be read
NEEDS = {
    "distillation_mode": {"distillation_topk": 7},
    "distillation_topk": TOPK,
    "distillation_topk_source": TOPK,
    "distillation_add_tail": TOPK,
    "distillation_stop_gradient": {**TOPK, "distillation_alpha": 1.0},
    "method_options": {"method": "rlsd", "num_generations": 2},
    "method": {"num_generations": 2},
    "distillation_entry_clip_mode": {"distillation_entry_clip": 0.05},
    "log_tokens_probe": {"log_tokens": 2},
    "teacher_update_rate": {"teacher_model_kind": "ema"},
    "teacher_sync_steps": {"teacher_model_kind": "ema"},
    "teacher_model_name_or_path": CHECKPOINT,
    "teacher_model_init_kwargs": CHECKPOINT,
    "teacher_adapters": {"teacher_model_kind": "adapters"},
    "teacher_model_server_url": {"teacher_model_kind": "server", **SAMPLED},
    "teacher_server_options": {"teacher_model_kind": "server", "teacher_model_server_url": "http://t", **SAMPLED},
    "policy_weight": {"num_generations": 2},
    "turns": {"num_generations": 2},
}
BASE = {"num_generations": 1, "bf16": False, "report_to": "none"}


def test_every_option_is_explained():
    for option in OWN:
        assert option.metadata["help"].endswith("."), "help of the command line"
        assert option.metadata.get("choices", []) == list(ALL_CHOICES.get(option.name, ()))
        doc = inspect.getdoc(OPSDConfig)
        entry = re.search(rf"^    {option.name} \(`.+\):$", doc, re.MULTILINE)
        assert entry, "docstring"
        default = f'"{option.default}"' if isinstance(option.default, str) else option.default
        expected = "*optional*" if option.default is None else f"*optional*, defaults to `{default}`"
        assert entry.group().endswith(f", {expected}):")
        text = doc[entry.end() :].split("\n    ")[1]
        assert text.startswith("    ") and text.strip(), "the entry has a text"


def test_the_command_line_explains_them_too():
    text = TrlParser((OPSDConfig,)).format_help()
    for option in OWN:
        assert f"--{option.name}" in text


def test_every_option_parses_on_the_command_line(tmp_path):
    for option in OWN:
        value = SAMPLE_VALUES[option.name]
        arguments = {"output_dir": str(tmp_path)} | BASE | NEEDS.get(option.name, {}) | {option.name: value}
        line = []
        for name, argument in arguments.items():
            texts = argument if isinstance(argument, list) else [argument]
            line += [f"--{name}", *(json.dumps(one) if isinstance(one, (dict, bool)) else str(one) for one in texts)]
        (built,) = OPSDParser((OPSDConfig,)).parse_args_and_config(line)
        assert getattr(built, option.name) == value and type(getattr(built, option.name)) is type(value)
        assert type(built.num_generations) is int


@pytest.mark.parametrize("as_json", [False, True], ids=["yaml", "json-in-yaml"])
def test_every_option_parses_in_a_recipe(tmp_path, as_json):
    for option in OWN:
        value = SAMPLE_VALUES[option.name]
        written = json.dumps(value) if as_json and isinstance(value, dict) else value
        recipe = BASE | NEEDS.get(option.name, {}) | {option.name: written}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        (built,) = OPSDParser((OPSDConfig,)).parse_args_and_config(
            ["--config", str(path), "--output_dir", str(tmp_path)]
        )
        assert getattr(built, option.name) == value and type(getattr(built, option.name)) is type(value)


def test_a_recipe_with_a_mistake_names_the_option(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE | {"teacher_model_kind": "snapshot"}))
    with pytest.raises(ValueError, match="`teacher_sync_steps` above 1"):
        TrlParser((OPSDConfig,)).parse_args_and_config(["--config", str(path), "--output_dir", str(tmp_path)])
