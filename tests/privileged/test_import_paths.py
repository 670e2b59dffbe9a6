# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Dotted paths of a recipe name what was written for their place, and nothing else is called."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from os import system as reexported

import pytest
import torch

import trl_opsd.privileged.imports as imports
from trl_opsd import OPSDConfig, View
from trl_opsd.cli import train
from trl_opsd.cli.errors import UserError
from trl_opsd.methods.registry import method_of
from trl_opsd.privileged import Source, build_source, rollouts_of
from trl_opsd.privileged.sources.hints import TurnHint
from trl_opsd.privileged.sources.retrieval import Retrieval
from trl_opsd.privileged.sources.skills import Skills


# What a recipe may name, in this module, which is imported by its name


def hinting(text):
    return lambda groups: [[View(text)] for _ in rollouts_of(groups)]


def source(groups):
    return [[View("Think!")] for _ in rollouts_of(groups)]


def above(value) -> Callable:
    return lambda rollout, group: rollout.total > value


def makes_a_source(text: str) -> Source:
    return build_source({"fixed": text})


class Own:
    def __init__(self, text="x"):
        self.text = text

    def __call__(self, groups):
        return [[View(self.text)] for _ in rollouts_of(groups)]


def reward(completions, **kwargs):
    return [0.0 for _ in completions]


def any_reward(**kwargs):
    return [0.0 for _ in kwargs["completions"]]


def two(one, other):
    return one


# What it may not


def deletes(folder) -> None:
    raise AssertionError("called")


def reads(path) -> str:
    raise AssertionError("called")


class Opened:
    def __init__(self, *args, **kwargs):
        raise AssertionError("called")


class Two:
    def __init__(self, text="x"):
        raise AssertionError("called")

    def __call__(self, one, other):
        return []


partial = functools.partial(reexported, "true")
HERE = __name__

CALLED = [
    "os.system",
    "subprocess.run",
    "subprocess.Popen",
    "shutil.rmtree",
    "builtins.exec",
    "builtins.eval",
    "pickle.loads",
    "posix.system",
    "importlib.import_module",
    "runpy.run_path",
    f"{HERE}.reexported",
    f"{HERE}.partial",
    f"{HERE}.subprocess.run",
    f"{HERE}.deletes",
    f"{HERE}.reads",
    f"{HERE}.Opened",
    f"{HERE}.Two",
    "torch.load",
    "torch.hub.load",
    "torch.nn.Linear",
    "datasets.load_dataset",
    "transformers.pipeline",
    "transformers.TextGenerationPipeline",
    "trl_opsd.privileged.imports.imported",
    "trl_opsd.cli.train.main",
    "numpy.load",
]


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    """A test that fails deletes no folder: in the place of each function stands one of its name that raises."""

    def stub(plain):
        @functools.wraps(plain)
        def ran(*args, **kwargs):
            raise AssertionError("called")

        return ran

    for owner, name in ((os, "system"), (subprocess, "run"), (shutil, "rmtree"), (torch, "load"), (torch.hub, "load")):
        monkeypatch.setattr(owner, name, stub(getattr(owner, name)))


@pytest.mark.parametrize("arguments", ["rm -rf x", {"command": "rm -rf x"}], ids=["bare", "named"])
@pytest.mark.parametrize("name", CALLED)
def test_nothing_else_is_called(name, arguments):
    condition = {"when": {"condition": {name: arguments}, "source": "column"}}
    for spec in ({name: arguments}, *([condition] if name != f"{HERE}.Two" else [])):  # which may be a condition
        with pytest.raises(ValueError, match=f"{name}(`|: there| is| can)"):
            build_source(spec)


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", f"{HERE}.reexported", f"{HERE}.two", f"{HERE}.HERE"])
def test_nothing_else_is_a_function_of_rollouts(name):
    """They would be called with texts of rollouts, later."""
    refused = rf"{name} (is of Python's standard library|is called with 1 argument|is '.*, and no function)"
    makers = {
        "answer": lambda: build_source({"pseudo_reference": {"answer": f"function:{name}"}}),
        "key": lambda: Skills(key=name),
        "by": lambda: Retrieval(by=name),
        "function": lambda: TurnHint(function=name),
        "condition": lambda: build_source({"when": {"condition": "os.getenv", "source": "column"}}),
    }
    for option, make in makers.items():
        with pytest.raises(ValueError, match="standard library" if option == "condition" else refused):
            make()
    with pytest.raises(ValueError, match=r"standard library|is called with 2 argument\(s\)|no function"):
        build_source({"written": {"author": name.replace("two", "source")}})
    with pytest.raises(ValueError, match=f"`privileged_source.{name}`"):
        build_source(name)


def test_a_module_of_the_standard_library_is_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    for name in ("this.s", "antigravity.webbrowser"):
        with pytest.raises(ValueError, match="standard library"):
            method_of(name)
    assert "this" not in sys.modules and "antigravity" not in sys.modules


def test_a_config_with_such_a_source_is_refused():
    with pytest.raises(ValueError, match=r"`privileged_source.os.system`: os.system is of Python's standard library"):
        OPSDConfig("x", bf16=False, num_generations=1, privileged_source={"os.system": "true"})


MAKERS = [
    {f"{HERE}.hinting": "x"},
    {f"{HERE}.makes_a_source": "x"},
    {f"{HERE}.Own": {"text": "x"}},
    f"{HERE}.Own",
    f"{HERE}.source",
    {"when": {"condition": {f"{HERE}.above": 0.5}, "source": f"{HERE}.source"}},
    {"trl_opsd.privileged.DatasetColumn": "solution"},
    {"trl_opsd.privileged.Fixed": "Be brief."},
]


@pytest.mark.parametrize("spec", MAKERS, ids=str)
def test_what_makes_a_source_is_called(spec):
    assert callable(build_source(spec))


def test_a_condition_of_the_package_by_its_path():
    spec = {"trl_opsd.privileged.conditions.reward_from": 0.5}
    assert callable(build_source({"when": {"condition": spec, "source": "column"}}))


REWARDS = ["os.system", "torch.load", f"{HERE}.deletes", f"{HERE}.Own", f"{HERE}.HERE", f"{HERE}.reexported"]


@pytest.mark.parametrize("name", REWARDS)
def test_nothing_else_is_a_reward(name):
    with pytest.raises(UserError, match=rf"`reward_funcs`: {name} is (no reward function|of Python's standard)"):
        train.import_reward(name)


def test_rewards():
    assert train.import_reward(f"{HERE}.reward") is reward and train.import_reward(f"{HERE}.any_reward") is any_reward
    assert train.import_reward("accuracy_reward").__name__ == "accuracy_reward"


def test_tools_environments_and_rollout_functions():
    for make, name, text in (
        (train.import_tool, "os.system", "standard library"),
        (train.import_tool, f"{HERE}.Own", "and no function"),
        (train.import_environment, "subprocess.Popen", "standard library"),
        (train.import_environment, f"{HERE}.Own", "is no class with a method `reset`"),
        (train.import_environment, f"{HERE}.source", "is no class with a method `reset`"),
        (train.import_rollout_func, "os.rename", "standard library"),
        (train.import_rollout_func, f"{HERE}.source", r"is called with 2 argument\(s\), which it does not take"),
    ):
        with pytest.raises(UserError, match=text):
            make(name)
    assert train.import_environment("examples.agents.shop.Shop").__name__ == "Shop"
    assert train.import_tool("examples.agents.calculator.calculate").__name__ == "calculate"
    assert callable(train.import_rollout_func("trl_opsd.privileged.guided.guided_rollouts"))


def test_where_a_function_was_written():
    assert imports.home(reexported) in ("posix", "nt", "os") and imports.home([].append) == "builtins"
    assert imports.home(functools.partial(source)) == HERE and imports.home({}) == ""
