# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Checks of a recipe before anything heavy is imported: each mistake is one sentence, and right recipes pass."""

import json
from pathlib import Path

import pytest

from trl_opsd.cli import launch, recipe_check
from trl_opsd.cli.catalog import catalog
from trl_opsd.cli.errors import UserError
from trl_opsd.cli.recipes import FOLDER, find_launch_config, find_recipe, recipe_names


GOOD = "model_name_or_path: some/model\ndataset_name: some/data\noutput_dir: out\n"
SOURCE = {"when": {"condition": "faled", "source": "sibling"}}


@pytest.mark.parametrize("name", recipe_names())
def test_the_packages_recipes_pass(name, monkeypatch):
    monkeypatch.setattr(recipe_check, "check_folder", lambda option, name: None)
    given = recipe_check.check(recipe_check.spelled(["--config", name]))
    assert given["output_dir"]


@pytest.mark.parametrize(
    ("recipe", "line", "words"),
    [
        ("a: [1\nb: 2\n", [], ["line 2, column 2", "expected ',' or ']'"]),
        ("- a\n", [], ["must hold options", "it holds list"]),
        (
            GOOD + "distilation_weight: 1\n",
            [],
            ["`distilation_weight` (did you mean `distillation_weight`?)", "recipe"],
        ),
        (GOOD, ["--maxsteps", "3"], ["the command line: `maxsteps` (did you mean `max_steps`?)"]),
        (GOOD, ["--max_steps", "many"], ["`max_steps` must be a whole number, got 'many'"]),
        (GOOD + "max_steps: 2.5\n", [], ["`max_steps` must be a whole number, got 2.5"]),
        (GOOD + "learning_rate: [1]\n", [], ["`learning_rate` takes one value"]),
        (GOOD + "learning_rate: .nan\n", [], ["`learning_rate` must be a number"]),
        (GOOD + "learning_rate: true\n", [], ["`learning_rate` must be a number"]),
        (GOOD + "bf16: maybe\n", [], ["`bf16` must be true or false, got 'maybe'"]),
        (GOOD, ["--teacher_model_kind", "frozen"], ["`teacher_model_kind` is 'frozen'", "one of base, live"]),
        (GOOD + "method: rldsd\n", [], ["`method` is 'rldsd'", "did you mean `rlsd`?"]),
        (GOOD + "privileged_source: sibbling\n", [], ["no source 'sibbling' (did you mean `sibling`?)"]),
        (GOOD + f"privileged_source: {json.dumps(SOURCE)}\n", [], ["no condition 'faled' (did you mean `failed`?)"]),
        (GOOD, ["--privileged_source", "{"], ["`privileged_source` is no JSON"]),
        (
            GOOD + "reward_funcs: [acuracy_reward]\n",
            [],
            ["no reward 'acuracy_reward' (did you mean `accuracy_reward`?)"],
        ),
        ("model_name_or_path: some/model\ndataset_name: some/data\n", [], ["`output_dir` is missing"]),
        ("model_name_or_path: some/model\noutput_dir: out\n", [], ["`dataset_name` is missing"]),
        (GOOD, ["--model_name_or_path", "demo/models/smollm2-135m"], ["does not exist", "trl-opsd data smollm2"]),
        (GOOD, ["--dataset_name", "demo/data/shop"], ["does not exist", "`trl-opsd data shop`"]),
        (GOOD, ["--dataset_name", "./mine"], ["does not exist: make it or correct the path"]),
    ],
)
def test_a_mistake_is_named(tmp_path, monkeypatch, recipe, line, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe_check, "version", catalog()["versions"].get)  # else spelling is left to TRL's parser
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(UserError) as error:
        recipe_check.check(recipe_check.spelled(["--config", "recipe.yaml", *line]))
    said = str(error.value)
    assert all(word in said for word in words), said
    assert "\n" not in said


def test_a_line_without_a_recipe_or_an_option(tmp_path):
    with pytest.raises(UserError, match="'smollm2_json' belongs to no option: a recipe is `--config smollm2_json`"):
        recipe_check.check(["smollm2_json"])
    with pytest.raises(UserError, match=r"`model_name_or_path` is missing.*named by `--config`"):
        recipe_check.check(["--max_steps", "3"])
    with pytest.raises(UserError, match="`--config` has no value"):
        recipe_check.spelled(["--config"])


def test_the_command_line_wins_over_the_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(GOOD + "max_steps: 5\n")
    line = [
        "--config",
        str(tmp_path / "recipe.yaml"),
        "--max-steps=7",
        "--reward_funcs",
        "a.b",
        "c.d",
        "--no_log_multimodal",
    ]
    given = recipe_check.check(recipe_check.spelled(line))
    assert (given["max_steps"], given["reward_funcs"], given["output_dir"]) == ("7", ["a.b", "c.d"], "out")


def test_other_versions_of_transformers_may_have_other_options(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(GOOD + "an_option_of_tomorrow: 5\n")
    monkeypatch.setattr(recipe_check, "version", lambda package: "99.0")
    assert recipe_check.check(["--config", str(tmp_path / "recipe.yaml")])["an_option_of_tomorrow"] == 5


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("smollm2_json", "smollm2_json.yaml"),
        ("smollm2_json.yaml", "smollm2_json.yaml"),
        ("recipes/smollm2_json.yaml", "smollm2_json.yaml"),
        ("methods/rlsd", "methods/rlsd.yaml"),
        ("rlsd_paper", "methods/rlsd_paper.yaml"),
    ],
)
def test_a_recipe_is_found_by_name_and_by_its_old_path(text, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(text) == FOLDER / file


def test_launch_configs_are_ours_or_those_of_trl(tmp_path):
    assert find_launch_config("zero3") == FOLDER / "accelerate" / "zero3.yaml"
    assert find_launch_config("multi_gpu").parts[-3:] == ("trl", "accelerate_configs", "multi_gpu.yaml")
    (tmp_path / "mine.yaml").touch()
    assert find_launch_config(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(UserError, match=r"is zero4: neither a file nor one of .*did you mean `zero3`\?"):
        find_launch_config("zero4")


def test_options_of_accelerate_go_there():
    """Those of both belong to the training, as in TRL."""
    line = ["--config", "r", "--num_processes", "4", "--debug", "x", "--accelerate_config", "zero2", "--max_steps", "3"]
    own, config = ["--config", "r", "--debug", "x", "--max_steps", "3"], str(Path(FOLDER, "accelerate", "zero2.yaml"))
    assert launch.launch_options(line) == (["--num_processes", "4", "--config_file", config], own)
    assert launch.launch_options(["--multi_gpu", "--max_steps", "3"]) == (["--multi_gpu"], ["--max_steps", "3"])
