# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Checks of a recipe before anything heavy is imported: each mistake is one sentence, and right recipes pass."""

from pathlib import Path

import pytest

from trl_opsd.cli import launch, recipe_check
from trl_opsd.cli.arguments import parse
from trl_opsd.cli.catalog import catalog
from trl_opsd.cli.errors import UserError
from trl_opsd.cli.recipes import FOLDER, find_launch_config, find_recipe, recipe_names


GOOD = "model_name_or_path: some/model\ndataset_name: some/data\noutput_dir: out\n"


@pytest.mark.parametrize("name", recipe_names())
def test_the_packages_recipes_pass(name, monkeypatch):
    monkeypatch.setattr(recipe_check, "check_folder", lambda option, name: None)
    given = recipe_check.check(recipe_check.spelled(["--config", name]))
    assert given["output_dir"]


@pytest.mark.parametrize(
    ("recipe", "line", "words"),
    [
        ("- a\n", [], ["must hold options", "it holds list"]),
        (GOOD, ["--maxsteps", "3"], ["the command line: `maxsteps` (did you mean `max_steps`?)"]),
        (GOOD + "max_steps: 2.5\n", [], ["`max_steps` must be a whole number, got 2.5"]),
        (GOOD + "learning_rate: [1]\n", [], ["`learning_rate` takes one value"]),
        (GOOD + "learning_rate: .nan\n", [], ["`learning_rate` must be a number"]),
        (GOOD + "learning_rate: true\n", [], ["`learning_rate` must be a number"]),
        (GOOD + "bf16: maybe\n", [], ["`bf16` must be true or false, got 'maybe'"]),
        (GOOD, ["--privileged_source", "{"], ["`privileged_source` is no JSON"]),
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
        "operator.add",
        "accuracy_reward",
        "--no_log_multimodal",
    ]
    given = recipe_check.check(recipe_check.spelled(line))
    assert (given["max_steps"], given["reward_funcs"], given["output_dir"]) == (
        "7",
        ["operator.add", "accuracy_reward"],
        "out",
    )


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


def test_a_value_too_many_is_not_dropped(tmp_path):
    (tmp_path / "recipe.yaml").write_text(GOOD)
    line = ["--config", str(tmp_path / "recipe.yaml"), "--report_to", "trackio", "tensorboard"]
    with pytest.raises(UserError, match=r"'tensorboard' belongs to no option: .* a list in a recipe only"):
        parse(line)


def test_groups_are_those_of_all_processes(tmp_path):
    (tmp_path / "mine.yaml").write_text("num_processes: 3\n")
    given = {"num_generations": "6", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    launch.check_devices(given, ["--num_processes", "3"])
    launch.check_devices(given, ["--config_file", str(tmp_path / "mine.yaml")])
    launch.check_devices(given | {"steps_per_generation": "3"}, ["--num_processes", "1"])
    with pytest.raises(UserError, match=r"the 8 completions .* set it to 2, 4, 8, or the batch size to a multiple"):
        launch.check_devices(given, ["--num_processes", "1"])
