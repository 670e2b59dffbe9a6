# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Recipes and scripts, as a user starts them."""

import json
from pathlib import Path

import pytest
import yaml

import tiny
import tiny_vlm
from trl_opsd.cli import recipe_check, train
from trl_opsd.cli.errors import UserError
from trl_opsd.examples import data, pictures, tasks
from trl_opsd.teacher import kinds


ROOT = Path(__file__).parents[2]


REWARD = "trl_opsd.examples.tasks.correct_sum"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def parsed(monkeypatch, *options):
    # The demo's folders need not be there
    monkeypatch.setattr(recipe_check, "check_folder", lambda option, name: None)
    monkeypatch.setattr(kinds, "check_adapters", lambda *_, **__: None)
    return train.parse([*options, "--bf16", "false"])  # a recipe for GPUs, too, is parsed here


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_parse_and_say_how_to_run_them(monkeypatch, recipe):
    _, args, model_args, _ = parsed(monkeypatch, "--config", str(recipe))
    assert model_args.model_name_or_path and args.output_dir and args.report_to == []
    head = recipe.read_text().split("\n\n")[0]
    assert "trl-opsd train --config" in recipe.read_text() and head.startswith("#")
    for name, value in yaml.safe_load(recipe.read_text()).items():
        if hasattr(args, name) and not isinstance(value, dict) and name != "bf16":
            assert getattr(args, name) == value or str(getattr(args, name)) == str(value), name


def test_the_demo_runs_on_defaults():
    """Lengths, batch and learning rate apart, the demo's recipe leaves the package's options alone."""
    from trl_opsd import OPSDConfig

    recipe = yaml.safe_load((ROOT / "recipes" / "smollm2_json.yaml").read_text())
    own = set(OPSDConfig.__dataclass_fields__) - set(OPSDConfig.__mro__[1].__dataclass_fields__)
    assert not own & recipe.keys()


def test_the_paper_recipe_has_the_papers_settings(monkeypatch):
    script_args, args, model_args, _ = parsed(monkeypatch, "--config", str(ROOT / "recipes/qwen3_1.7b_opsd_paper.yaml"))
    assert (args.distillation_alpha, args.distillation_entry_clip, args.teacher_model_kind) == (0.0, 0.05, "base")
    assert (args.learning_rate, args.max_grad_norm, args.max_completion_length) == (5e-6, 0.1, 1024)
    assert (args.temperature, args.top_p, args.top_k, args.max_steps) == (1.1, 0.95, 20, 100)
    assert (model_args.lora_r, model_args.lora_alpha) == (64, 128)
    assert args.student_chat_template_kwargs == {"enable_thinking": False}
    assert args.teacher_chat_template_kwargs == {"enable_thinking": True}
    assert (script_args.prompt_column, args.privileged_column) == ("problem", "solution")


def test_an_unknown_option_is_named(monkeypatch, tmp_path, capsys):
    recipe = tmp_path / "typo.yaml"
    recipe.write_text("output_dir: out\ndistilation_alpha: 0.5\n")
    with pytest.raises(UserError, match=r"`distilation_alpha` \(did you mean `distillation_alpha`\?\)"):
        parsed(monkeypatch, "--config", str(recipe))


def test_a_missing_folder_is_named_with_what_makes_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"demo/models/smollm2-135m, which does not exist.*trl-opsd data smollm2"):
        train.parse(["--config", str(ROOT / "recipes" / "smollm2_json.yaml"), "--bf16", "false"])


def test_training_script_end_to_end(tmp_path, tokenizer):
    """Model, data, reward and recipe from disk to a saved model with its card."""
    tiny.model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data.prepare("addition", tmp_path / "data")
    recipe = {
        "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"), "reward_funcs": [REWARD], "eval_strategy": "steps",
        "eval_steps": 1, "per_device_train_batch_size": 4, "num_generations": 2, "per_device_eval_batch_size": 32,
        "max_completion_length": 4, "max_steps": 1, "bf16": False, "report_to": "none", "save_strategy": "no",
        "gradient_checkpointing": False,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train.main(*train.parse(["--config", str(tmp_path / "recipe.yaml")]))
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "trained with OPSD" in (tmp_path / "out" / "README.md").read_text()
    resumed = train.parse(["--config", str(tmp_path / "recipe.yaml"), "--resume_from_checkpoint", "true"])
    with pytest.raises(ValueError, match="`resume_from_checkpoint=True` found no complete checkpoint"):
        train.main(*resumed)


def test_preflight_prints_a_report_and_trains_nothing(tmp_path, tokenizer, capsys):
    tiny.model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data.prepare("addition", tmp_path / "data")
    recipe = {
        "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "out"), "reward_funcs": [REWARD], "num_generations": 2,
        "per_device_train_batch_size": 4, "max_completion_length": 4, "bf16": False, "report_to": "none",
        "gradient_checkpointing": False, "preflight_rows": 3,
        "preflight_sources": {"rule": {"fixed": "Add the numbers."}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train.main(*train.parse(["--config", str(tmp_path / "recipe.yaml"), "--preflight", "--preflight_temperature", "0"]))
    told = capsys.readouterr().out
    assert "8 rollouts of 4 rows" in told and "own/privileged" in told and "rule/privileged" in told
    assert "at temperature 0" in told
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_recipe_with_pictures_on_a_tiny_model(tmp_path):
    """Pictures from disk, a processor from disk, and a teacher that reads what stands in them."""
    tiny_vlm.model("llava").save_pretrained(tmp_path / "model")
    tiny_vlm.processor("llava").save_pretrained(tmp_path / "model")
    pictures.prepare(tmp_path / "data", rows={"train": 4, "test": 2})
    recipe = ROOT / "recipes" / "qwen2.5_vl_3b_image_view.yaml"
    options = {
        "config": recipe, "model_name_or_path": tmp_path / "model", "dtype": "float32", "output_dir": tmp_path / "out",
        "dataset_name": tmp_path / "data", "per_device_train_batch_size": 4, "max_completion_length": 4,
        "max_steps": 1, "bf16": "false", "gradient_checkpointing": "false", "log_privileged_context": "true",
    }  # fmt: skip
    train.main(*train.parse([part for name, value in options.items() for part in (f"--{name}", str(value))]))
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    (told,) = (tmp_path / "out" / "_privileged").glob("*.jsonl")
    read = [json.loads(line)["views"][0] for line in told.read_text().splitlines()]
    data = [json.loads(line) for line in (tmp_path / "data" / "train" / "metadata.jsonl").read_text().splitlines()]
    assert len(read) == 4 and {view["context"] for view in read} <= {row["transcription"] for row in data}
    assert all("In the picture stands: " + view["context"] in str(view["prompt"]) for view in read)


def test_preflight_sources_are_a_mapping(monkeypatch):
    options = "--config", str(ROOT / "recipes" / "smollm2_preflight.yaml"), "--preflight_sources"
    script_args, *_ = parsed(monkeypatch, *options, '{"a": {"column": "b"}}')
    assert script_args.preflight_sources == {"a": {"column": "b"}}
    with pytest.raises(UserError, match="`preflight_sources` must map names"):
        parsed(monkeypatch, *options, "column")


# The two tasks


@pytest.mark.parametrize("task", data.TASKS)
def test_tasks_are_seeded_and_disjoint(task, tmp_path):
    one, two = data.TASKS[task](0), data.TASKS[task](0)
    assert one == two
    # Errands may sound alike: their shops differ
    problems = {split: {json.dumps(row, sort_keys=True) for row in rows} for split, rows in one.items()}
    assert not problems["train"] & problems["test"]
    if task in ("json", "addition"):  # the others have hints for what goes wrong
        assert all(row["privileged_context"] for rows in one.values() for row in rows)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"answer": "A star."}', 1.0),
        (' {"answer": "A star."}\n', 1.0),
        ('{"answer": ""}', 0.0),
        ('{"answer": "A star."', 0.0),
        ('Here: {"answer": "A star."}', 0.0),
        ('["answer"]', 0.0),
        ("", 0.0),
    ],
)
def test_valid_json(text, valid):
    assert tasks.valid_json([[{"role": "assistant", "content": text}]]) == [valid]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The answer is 42.", 1.0),
        ("12 + 30 = 42", 1.0),
        ("The sum of 12 and 42.", 0.0),
        ("It is 43, not 42.", 1.0),  # the last number counts: a known leniency
        ("The answer is 142.", 0.0),
        ("I don't know.", 0.0),
    ],
)
def test_correct_sum(text, right):
    assert tasks.correct_sum([text], [42]) == [right]
