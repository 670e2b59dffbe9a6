# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What holds for every method: its file, its recipes, its place in the config and in a run."""

import importlib
import json
import math
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import tiny
from trl_opsd import Method, OPSDConfig
from trl_opsd.methods import method_names, method_of


ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import opsd  # noqa: E402
import tasks  # noqa: E402


every_method = pytest.mark.parametrize("name", method_names())
RECIPES = ROOT / "recipes" / "methods"
DATA = {"demo/data/json": "json", "demo/data/addition": "addition"}


def defaults_of(config):
    return {item.name: item.default for item in fields(config)}


@every_method
def test_the_file(name):
    """Short, and with a docstring that the docs are made of."""
    path = ROOT / "trl_opsd" / "methods" / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 60
    doc, method = importlib.import_module(f"trl_opsd.methods.{name}").__doc__, method_of(name)
    assert "**Changed**" in doc and "**Fails**" in doc and "\n    " in doc, "a formula is indented"
    assert all(f"`{option}`" in doc for option in method.options), "each option is described"
    assert method.needs and method.title and method.paper
    assert name not in (ROOT / "trl_opsd" / "trainer.py").read_text().replace("trl_opsd", "").lower().split()


@every_method
def test_its_defaults_are_options_and_can_be_overridden(name):
    method = method_of(name)
    groups = {"num_generations": 2, "output_dir": "unused", "bf16": False}
    config = OPSDConfig(method=name, **groups)
    for option, value in method.defaults.items():
        assert getattr(config, option) == value, option
        assert value != defaults_of(OPSDConfig)[option] or option in ("distillation_alpha", "teacher_model_kind")
    explicit = {"learning_rate": 3e-4, "num_loss_tokens_to_skip": 2, "success_reward_threshold": 0.5}
    config = OPSDConfig(method=name, **groups, **explicit)
    assert {option: getattr(config, option) for option in explicit} == explicit


@every_method
def test_the_recipe_runs(name, tmp_path, tokenizer):
    """The recipe of this machine with a tiny model: its losses are numbers, and rollouts have views or are counted."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert recipe["method"] == name
    tiny.model(tokenizer, max_position_embeddings=4096).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    task = DATA.get(recipe["dataset_name"])
    options = {
        "model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "out", "max_steps": 2,
        "max_completion_length": 16, "per_device_train_batch_size": max(recipe.get("num_generations", 4), 4),
    }  # fmt: skip
    if task is not None:
        options["dataset_name"] = tasks.prepare(task, tmp_path / "data")
    line = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    parsed = opsd.parse(["--config", str(RECIPES / f"{name}.yaml"), *line])
    trainer = opsd.build_trainer(*parsed[:3], opsd.load_data(parsed[0], parsed[3]))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2 and all(math.isfinite(entry["loss"]) for entry in logs)
    assert all("self_distillation/view_share" in entry for entry in logs)
    assert json.dumps(trainer.args.to_dict()), "options are saved"


@every_method
def test_the_papers_recipe(name, monkeypatch):
    monkeypatch.setattr(opsd, "check_folder", lambda option, value: None)
    path = RECIPES / f"{name}_paper.yaml"
    if not path.exists():
        assert name == "opsd", "recipes/qwen3_1.7b_opsd_paper.yaml"
        return
    text = path.read_text()
    assert text.startswith("# Not run here") and "accelerate launch" in text
    _, args, model_args, _ = opsd.parse(["--config", str(path), "--bf16", "false"])
    assert args.method == name and model_args.model_name_or_path


MINE = Method(title="Mine", paper="https://example.org", label="paper", options={"x": 1.0})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "rlds"}, r"`method` is 'rlds': it must be one of \['"),
        ({"method": "math.pi"}, "which is no `trl_opsd.methods.Method`"),
        ({"method_options": {"share": 1.0}}, "`method_options` belong to a `method`"),
        ({"method": "rlsd", "method_options": {"lambda": 1.0}}, r"has no such option; it has \['clip', 'share', 'st"),
        ({"method": "rlsd", "method_options": {"share": "much"}}, "'share' must be like its default, 0.5; got 'much'"),
        ({"method": "rlsd", "distillation_mode": "full_logits"}, "`distillation_mode` must be 'sampled_token'"),
        ({"method": "rlsd", "policy_weight": 0.0}, "learns from rewards"),
    ],
)
def test_mistakes(options, text):
    with pytest.raises(ValueError, match=text):
        OPSDConfig("unused", bf16=False, num_generations=2, **options)


def test_a_method_of_ones_own():
    config = OPSDConfig("unused", bf16=False, num_generations=2, method="test_frame.MINE", method_options={"x": 2})
    assert config.method == "test_frame.MINE"


SEEN = Method(title="S", paper="https://example.org", label="paper", follow=lambda seen: {"loss": seen.loss})


def test_a_schedule_sees_the_loss_that_is_trained(make_trainer):
    """Of all tokens of a step, over micro-batches with different numbers of them, some rows without a view."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 1}
    trainer = make_trainer(method="test_frame.SEEN", **options)
    trainer.train()
    loss = trainer.state.log_history[0]["loss"]
    assert loss > 0 and trainer.method.state["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_parser_that_knows_no_methods_is_refused(tmp_path):
    from trl import TrlParser

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"method": "rlsd", "num_generations": 2, "bf16": False, "output_dir": "unused"}))
    with pytest.raises(ValueError, match=r"Parse with `trl_opsd\.OPSDParser`"):
        TrlParser((OPSDConfig,)).parse_args_and_config(["--config", str(recipe)])
