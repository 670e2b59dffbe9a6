# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What holds for every method: its file, its recipes, its place in the config and in a run."""

import importlib
import json
import math
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import tiny
from trl_opsd import Method, OPSDConfig, OPSDParser
from trl_opsd.cli import recipe_check, train
from trl_opsd.examples import data
from trl_opsd.methods import method_names, method_of
from trl_opsd.trainer.model_card import paper_of


ROOT = Path(__file__).parent.parent.parent


every_method = pytest.mark.parametrize("name", method_names())
RECIPES = ROOT / "recipes" / "methods"
TWELVE = {"num_generations": 12, "per_device_train_batch_size": 12}  # of two, three or four slots of `turns`
DATA = {f"demo/data/{task}": task for task in ("json", "addition", "calculator")}


def defaults_of(config):
    return {item.name: item.default for item in fields(config)}


@every_method
def test_the_file(name):
    """Short, and with a docstring that the docs are made of."""
    path = ROOT / "trl_opsd" / "methods" / "papers" / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 120
    doc, method = importlib.import_module(f"trl_opsd.methods.papers.{name}").__doc__, method_of(name)
    assert "**Changed**" in doc and "**Fails**" in doc and "\n    " in doc, "a formula is indented"
    assert all(f"`{option}`" in doc for option in method.options), "each option is described"
    assert method.needs and method.title and method.paper
    for path in [*(ROOT / "trl_opsd" / "trainer").glob("*.py"), ROOT / "trl_opsd" / "model" / "forward.py"]:
        text = path.read_text().replace('_tag_names = ["trl", "opsd"]', "")
        assert not re.search(rf"""["']{name}["']""", text), f"{path.name} names a method"


@every_method
def test_its_defaults_are_options_and_can_be_overridden(name):
    method = method_of(name)
    groups = {"output_dir": "unused", "bf16": False, **TWELVE}
    config = OPSDConfig(method=name, **groups)
    for option, value in method.defaults.items():
        assert getattr(config, option) == value, option
        assert value != defaults_of(OPSDConfig)[option] or option in ("distillation_alpha", "teacher_model_kind")
    explicit = {"learning_rate": 3e-4, "num_loss_tokens_to_skip": 2, "success_reward_threshold": 0.5}
    config = OPSDConfig(method=name, **groups, **explicit)
    assert {option: getattr(config, option) for option in explicit} == explicit


# Their views are made of what a tiny model can't write
WRITTEN = {"feedback_alignment": "critic_malformed", "skill_sd": "skills_malformed"}
# No teacher reads anything where a method learns from the roles of its turns alone
WRITTEN |= dict.fromkeys(("rltf_fm", "rltf_sd"), "turns/unit_share")


def answers(tokenizer, right=True):
    """Three of four rollouts are a right sum, or none, in place of what a tiny model says."""

    def single_turn(prompt_ids, *_):
        said = []
        for i, ids in enumerate(prompt_ids):
            a, b = re.findall(r"What is (\d+) \+ (\d+)", tokenizer.decode(ids))[-1]
            said.append(f"{a} + {b} = {int(a) + int(b) + 7 * (not right or i % 4 == 3)}<|im_end|>")
        return tokenizer(said)["input_ids"], None

    return single_turn


@every_method
def test_the_recipe_runs(name, tmp_path, tokenizer, monkeypatch):
    """The recipe of this machine with a tiny model: its losses are numbers, and rollouts have views."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert recipe["method"] == name
    tiny.model(tokenizer, max_position_embeddings=4096).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    task = DATA.get(recipe["dataset_name"])
    options = {
        "model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "out", "max_steps": 2,
        "max_completion_length": 20, "per_device_train_batch_size": max(recipe.get("num_generations", 4), 4),
    }  # fmt: skip
    if task is not None:
        options["dataset_name"] = data.prepare(task, tmp_path / "data")
    line = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    parsed = train.parse(["--config", str(RECIPES / f"{name}.yaml"), *line])
    trainer = train.build_trainer(*parsed[:3], train.load_data(parsed[0], parsed[3]))
    if task == "addition":
        monkeypatch.setattr(trainer, "_generate_single_turn", answers(tokenizer, right=name != "hdpo"))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2 and all(math.isfinite(entry["loss"]) for entry in logs)
    for entry in logs:
        known = WRITTEN.get(name, "view_share")
        assert entry[f"self_distillation/{known}"] > 0, entry
    assert json.dumps(trainer.args.to_dict()), "options are saved"


@every_method
def test_the_papers_recipe(name, monkeypatch):
    monkeypatch.setattr(recipe_check, "check_folder", lambda option, value: None)
    path = RECIPES / f"{name}_paper.yaml"
    if not path.exists():
        assert name == "opsd", "recipes/qwen3_1.7b_opsd_paper.yaml"
        return
    text = path.read_text()
    assert text.startswith("# Not run here") and "trl-opsd train --config" in text
    _, args, model_args, _ = train.parse(["--config", str(path), "--bf16", "false"])
    assert args.method == name and model_args.model_name_or_path


MINE = Method(title="Mine", options={"x": 1.0})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "rlds"}, r"`method` is 'rlds' \(did you mean `rlsd`\?\): it must be one of \['"),
        ({"method": "tiny.CHAT_TEMPLATE"}, "which is no `trl_opsd.methods.Method`"),
        ({"method_options": {"share": 1.0}}, "`method_options` belong to a `method`"),
        (
            {"method": "rlsd", "method_options": {"lambda": 1.0}},
            r"has no option 'lambda'; it has \['clip', 'share', 'st",
        ),
        (
            {"method": "rlsd", "method_options": {"share": "much"}},
            r"`method_options\.share` must be .* between 0 and 1, got 'much'",
        ),
        ({"method": "rlsd", "distillation_mode": "full_logits"}, "`distillation_mode` must be 'sampled_token'"),
        ({"method": "rlsd", "policy_weight": 0.0}, "learns from rewards"),
    ],
)
def test_mistakes(options, text):
    with pytest.raises(ValueError, match=text):
        OPSDConfig("unused", bf16=False, num_generations=2, **options)


def test_a_method_of_ones_own():
    config = OPSDConfig("unused", bf16=False, num_generations=2, method="test_frame.MINE", method_options={"x": 2})
    assert config.method == "test_frame.MINE" and MINE.label == "own"


def test_a_method_of_ones_own_cites_no_paper(make_trainer, tmp_path):
    trainer = make_trainer(method="test_frame.MINE")
    trainer.create_model_card("mine")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The method is Mine." in card and "was trained with OPSD." in card
    assert "2601.18734" not in card and "Cite OPSD" not in card


@pytest.mark.parametrize("label", ["paper", "code", "proposed reading"])
def test_a_label_that_speaks_of_a_paper_needs_one(label):
    with pytest.raises(ValueError, match="speaks of a paper: give it as `paper`"):
        Method(title="Mine", label=label)


NEW = """\"\"\"A method that is in no list.\"\"\"

from trl_opsd.methods.base import Method

METHOD = Method(title="New", defaults={"distillation_alpha": 1.0})
"""


def test_a_file_in_the_folder_is_a_method(tmp_path, monkeypatch):
    """Adding a method touches one file: its name is at once known to the config, and helpers with `_` are none."""
    from trl_opsd.methods import papers, registry

    (tmp_path / "brand_new.py").write_text(NEW)
    (tmp_path / "_helper.py").write_text("")
    monkeypatch.setattr(papers, "__path__", [*papers.__path__, str(tmp_path)])
    names = set(registry.method_names())
    assert names == {path.stem for path in Path(papers.__path__[0]).glob("[a-z]*.py")} | {"brand_new"}
    try:
        config = OPSDConfig("unused", bf16=False, num_generations=2, method="brand_new")
        assert method_of("brand_new").title == "New" and config.distillation_alpha == 1.0
    finally:
        sys.modules.pop("trl_opsd.methods.papers.brand_new", None)


SUMMARY = Method(title="S", update_state=lambda summary: {"loss": summary.loss})


def test_a_schedule_sees_the_loss_that_is_trained(make_trainer):
    """Of all tokens of a step, over micro-batches with different numbers of them, some rows without a view."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 1}
    trainer = make_trainer(method="test_frame.SUMMARY", **options)
    trainer.train()
    loss = trainer.state.log_history[0]["loss"]
    assert loss > 0 and trainer.method.schedule_state["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("opsd", {"distillation_alpha": 0.5, "distillation_entry_clip": None}),
        (
            "opsd",
            {"distillation_mode": "sampled_token", "distillation_alpha": 1.0, "distillation_entry_clip": None},
        ),
        ("dasd", {"distillation_alpha": 0.0}),
        ("edge_opd", {"teacher_model_kind": "base"}),
    ],
)
def test_values_of_the_package_win_over_a_methods_too(name, variant, tmp_path):
    """In a recipe as in Python: the variants that docs/methods.md names among them."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"method": name, "bf16": False, "output_dir": "unused", **variant}))
    (parsed,) = OPSDParser((OPSDConfig,)).parse_args_and_config(["--config", str(recipe)])
    for config in (parsed, OPSDConfig("unused", bf16=False, method=name, **variant)):
        assert {option: getattr(config, option) for option in variant} == variant


@every_method
def test_the_card_cites_it(name):
    """With a key of its own, so that two models' citations stand in one bibliography."""
    method, paper = method_of(name), paper_of(OPSDConfig("unused", method=name, bf16=False, **TWELVE))
    assert paper["title"] == method.title and paper["id"] == (method.paper if method.on_arxiv else None)
    assert method.paper in paper["citation"] and method.title in paper["citation"]
    (key,) = re.findall(r"^@\w+\{(\w+),$", paper["citation"], re.MULTILINE)
    others = {
        method_of(one).title: method_of(one).bibtex for one in method_names() if method_of(one).title != method.title
    }
    assert key.isascii() and not any(f"{{{key}," in text for text in others.values())


def test_a_parser_that_knows_no_methods_leaves_it_no_option(tmp_path):
    """It gives a config every option, so the package's values stand: see config/method_defaults.py."""
    from trl import TrlParser

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"method": "sdft", "bf16": False, "output_dir": "unused"}))
    (parsed,) = TrlParser((OPSDConfig,)).parse_args_and_config(["--config", str(recipe)])
    (known,) = OPSDParser((OPSDConfig,)).parse_args_and_config(["--config", str(recipe)])
    assert (parsed.teacher_model_kind, known.teacher_model_kind) == ("base", "ema")
