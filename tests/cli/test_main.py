# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The command `trl-opsd`, and the three ways to start a training."""

import importlib
import sys
import tomllib
from pathlib import Path

import pytest

import processes
from trl_opsd.cli import arguments, train
from trl_opsd.cli import main as cli
from trl_opsd.methods import method_names, method_of


ROOT = Path(__file__).parents[2]


def test_the_command_is_installed_with_the_package():
    with open(ROOT / "pyproject.toml", "rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    module, _, name = scripts["trl-opsd"].partition(":")
    assert getattr(importlib.import_module(module), name) is cli.main


def test_methods_are_listed(capsys):
    cli.main(["methods"])
    told = capsys.readouterr().out
    for name in method_names():
        method = method_of(name)
        assert f"\n{name} ({method.label}, " in f"\n{told}" and method.paper in told and method.needs in told
    assert "opsd (code, arXiv 2601.18734)\n    The teacher reads a reference solution; the student is pulled" in told
    with pytest.raises(SystemExit, match="`trl-opsd methods` takes no options, got --all"):
        cli.main(["methods", "--all"])


def test_train_takes_the_recipe_and_what_wins_over_it(monkeypatch, tmp_path):
    recipe, given = tmp_path / "recipe.yaml", []
    recipe.write_text("model_name_or_path: a/b\ndataset_name: c/d\noutput_dir: out\nbf16: false\nmax_steps: 3\n")
    monkeypatch.setattr(train, "main", lambda *parsed: given.extend(parsed))
    cli.main(["train", "--config", str(recipe), "--max_steps", "5"])
    script_args, args, model_args, _ = given
    assert (script_args.dataset_name, args.max_steps, model_args.model_name_or_path) == ("c/d", 5, "a/b")


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"]])
def test_help(capsys, args):
    cli.main(args)
    told = capsys.readouterr().out
    assert all(f"\n  {command} " in told for command in cli.COMMANDS)


def test_an_unknown_command_is_an_error():
    with pytest.raises(SystemExit, match=r"error: 'trian' is no command.\nusage: trl-opsd COMMAND"):
        cli.main(["trian"])


def test_examples_of_a_checkout_are_found_from_anywhere(monkeypatch, tmp_path):
    """By the path from its root, as its recipes name them."""
    folder = tmp_path / "checkout"
    (folder / "examples").mkdir(parents=True)
    (folder / "examples" / "__init__.py").touch()
    (folder / "examples" / "some_task.py").write_text("def reward(completions, **_):\n    return []\n")
    monkeypatch.setattr(arguments, "__file__", str(folder / "trl_opsd" / "cli" / "arguments.py"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.path)
    arguments.find_examples()
    assert set(sys.path) - before <= {str(tmp_path)}, "an installed package has no examples"
    (folder / "pyproject.toml").touch()
    arguments.find_examples()
    monkeypatch.delitem(sys.modules, "examples", raising=False)  # that of the checkout under test
    assert train.import_reward("examples.some_task.reward")([]) == [] and str(folder) in sys.path


@pytest.mark.parametrize(
    "door", [["scripts/opsd.py"], ["-m", "trl_opsd.cli.train"], ["-m", "trl_opsd.cli.main", "train"]], ids=" ".join
)
def test_each_door_leads_to_the_training(door, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("bf16: false\n")
    done = processes.run([sys.executable, *door, "--config", str(recipe)], cwd=ROOT, timeout=300)
    assert done.returncode == 1 and "error: `dataset_name` is missing" in done.stderr, done.stderr[-2000:]
