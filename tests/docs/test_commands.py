# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
What texts of the repository name is there: files, modules and names in them. The commands that they show are parsed by
the commands' own parsers; those that only list are run.
"""

import importlib
import importlib.util
import re
import shlex
import shutil
import tomllib
import warnings
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

import named
from benchmarks import __main__ as benchmarks
from named import ROOT
from trl_opsd.cli import align, collect, estimate, launch, preflight, recipe_check
from trl_opsd.cli import main as cli
from trl_opsd.cli.errors import UserError


# For names to fill in; texts and folders need none
FILLED = {
    "data": "json",
    "methods": "rlsd",
    "sources": "sibling",
    "recipes": "smollm2_json",
    "train": "smollm2_json",
    "agents": "smollm2_calculator_hint",
    "phases": "rft",
}
LISTINGS = ("methods", "options", "recipes", "sources")
COMMANDS = {command: file for file in named.TEXTS for command in named.commands(file)}
PROGRAMS = [path for folder in ("scripts", "examples", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder with a recipe of one's own. The models and data of other recipes need not be there."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "recipes" / "smollm2_json.yaml", "my_recipe.yaml")
    Path("my_module.py").write_text("def score(completions, **columns): ...")
    monkeypatch.setattr(recipe_check, "check_folder", lambda option, name: None)


def parse(command: str) -> None:
    """
    Parse a command with the parser of what it starts.

    Raises:
        AssertionError, UserError, SystemExit: If it does not parse or names what is not there.
    """
    for part in re.split(r" && | & ?$", command):
        words = shlex.split(part, comments=True)
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        words = [word for word in words if word != "..."]
        program = Path(words[0]).name
        if program == "trl-opsd":
            parse_own(words[1:])
        elif program == "make":
            parse_make(words[1:])
        elif program == "accelerate" and len(words) > 2:
            parse_launch(words[2:])
        elif program == "torchrun":
            parse_training(words[words.index("scripts/opsd.py") + 1 :])
        elif "pip" in words[:3] and "install" in words:
            parse_install(words)
        elif program == "python":
            parse_python(words[1:])


def parse_own(words: list[str]) -> None:
    """`trl-opsd`. A name of a command alone is a mention of it."""
    name = words[0]
    assert name in cli.COMMANDS, f"there is no command {name}"
    if len(words) == 1 or any("[--" in word for word in words):
        return
    if name == "train":
        parse_training(words[1:])
        return
    if name in ("preflight", "align", "collect"):
        module = {"preflight": preflight, "align": align, "collect": collect}[name]
        parse_training(preflight.named(words[1:], module.NAMES))
        return
    if name == "estimate":
        words = recipe_check.spelled(filled("train", words[1:]))
        args, others = estimate.build_parser().parse_known_args(words)
        recipe_check.options_of(others, own=vars(args))
        return
    words = filled(name, words)
    args = cli.build_parser(name).parse_args(words)
    if name in LISTINGS:
        if "--copy" in words:
            args.copy.unlink(missing_ok=True)
        cli.main(words)


def filled(name: str, words: list[str]) -> list[str]:
    """Words of a command with values for the names that a reader fills in."""
    words = [FILLED.get(name, word) if word in ("NAME", "RECIPE") else word for word in words]
    return ["1" if word == "N" else word for word in words]


def parse_launch(words: list[str]) -> None:
    """`accelerate launch`, which checks that the files it is given are there."""
    words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in words]
    args = launch_command_parser().parse_args(words)
    assert args.training_script == ("trl_opsd.cli.train" if args.module else str(ROOT / "scripts" / "opsd.py"))
    parse_training(args.training_script_args)


def parse_training(words: list[str]) -> None:
    """Options of a training, with the names of recipe and launch config; without a recipe it is a mention."""
    if "--config" in words:
        _, args = launch.launch_options(recipe_check.spelled(filled("train", words)))
        recipe_check.check(args)


def parse_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.M)
    for word in words:
        name, given, text = word.partition("=")
        assert given or name in targets, f"there is no target {name}"
        for path in shlex.split(text):
            assert path.startswith("-") or (ROOT / path).exists(), f"{path} is not there"


def parse_install(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for names in re.findall(r"(?:^| )(?:trl-opsd|\.)\[([\w,]+)\]", " ".join(words)):
        if names != named.PLACEHOLDER:
            assert set(names.split(",")) <= set(extras), f"there is no extra {names}"


def parse_python(words: list[str]) -> None:
    if words[:2] == ["-m", "benchmarks"]:
        if len(words) > 2 and words[2] != "--help":
            benchmarks.build_parser().parse_args(filled(words[2], words[2:]))
    elif words[0] == "-m":
        foreign = words[1].split(".")[0] in ("vllm", "pytest", "pip", "build")
        assert foreign or importlib.util.find_spec(words[1]), f"there is no module {words[1]}"
    else:
        assert (ROOT / words[0]).is_file(), f"{words[0]} is not there"


def mistakes(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    try:
        parse(command)
    except (AssertionError, UserError) as error:
        return str(error)
    except SystemExit:
        return capsys.readouterr().err.splitlines()[-1]
    return ""


def test_every_command_in_a_text_parses(capsys):
    assert len(COMMANDS) > 150
    wrong = {command: mistakes(command, capsys) for command in COMMANDS}
    told = [
        f"{COMMANDS[command].relative_to(ROOT)}: `{command}`: {mistake}"
        for command, mistake in wrong.items()
        if mistake
    ]
    assert not told, "\n".join(told)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("trl-opsd trian --config smollm2_json", "no command trian"),
        ("trl-opsd train --config smolm2_json", "did you mean `smollm2_json`?"),
        ("trl-opsd train --config smollm2_json --accelerate_config zero4", "`--accelerate_config` is zero4"),
        ("trl-opsd train --config smollm2_json --teacher_model_kind frozen", "`teacher_model_kind`"),
        ("trl-opsd data jsn", "invalid choice"),
        ("trl-opsd methods rldsd", "no method 'rldsd'"),
        ("trl-opsd chat MODEL --besides BASE", "unrecognized arguments"),
        ("X=1 .venv/bin/trl-opsd recipes smolm2_json", "neither a file nor a recipe"),
        ("python -m benchmarks kernl", "invalid choice"),
        ("python -m trl_opsd.cli.tain", "no module"),
        ("python scripts/gone.py", "scripts/gone.py is not there"),
        ("make test demoo", "no target demoo"),
        ('make test ARGS="tests/losses tests/gone -x"', "tests/gone is not there"),
        ("pip install 'trl-opsd[vlm]'", "no extra vlm"),
        ("accelerate launch scripts/opsd.py --config recipes/gone.yaml", "neither a file nor a recipe"),
        ("make venv-vllm && trl-opsd data jsn", "invalid choice"),
    ],
)
def test_a_wrong_command_is_found(command, words, capsys):
    assert words in mistakes(command, capsys) != ""


@pytest.mark.parametrize("text", named.TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_files_that_a_text_names_are_there(text):
    gone = sorted(name for name in named.paths(text) if not named.is_there(name, text))
    assert not gone, f"{text.relative_to(ROOT)} names {gone}"


def test_a_file_that_is_not_there_is_found(tmp_path):
    text = tmp_path / "text.md"
    text.write_text(
        "scripts/gone.py, `losses/divergences.py`, (../docs/gone.md), papers/NAME.py, out/gone.csv, see docs/gone.png."
    )
    gone = {name for name in named.paths(text) if not named.is_there(name, text)}
    assert gone == {"scripts/gone.py", "../docs/gone.md", "docs/gone.png"}


def test_every_dotted_name_in_a_text_exists():
    names = {name: file for file in named.TEXTS for name in named.dotted(file)}
    assert len(names) > 100
    gone = [f"{file.relative_to(ROOT)}: {name}" for name, file in names.items() if not exists(name)]
    assert not gone, "\n".join(gone)
    assert exists("trl_opsd.examples.tasks.correct_sum")
    assert not exists("trl_opsd.examples.tasks.right_sum") and not exists("trl_opsd.example.tasks")


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    module, *names = name.split(".")
    if names[-1] == named.PLACEHOLDER:
        names.pop()
    found = importlib.import_module(module)
    for part in names:
        if not hasattr(found, part):
            try:
                with warnings.catch_warnings(action="ignore"):  # former homes warn
                    importlib.import_module(f"{module}.{part}")
            except ModuleNotFoundError:
                return False
        module, found = f"{module}.{part}", getattr(found, part)
    return True


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_program_can_be_imported(path):
    importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))


def test_every_benchmark_has_a_command():
    has_main = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef main(" in path.read_text()}
    packages = (ROOT / "benchmarks").glob("*/__init__.py")
    has_main |= {path.parent.name for path in packages if " import main\n" in path.read_text()}
    assert has_main - {"__main__"} == {*benchmarks.BENCHMARKS, "methods"}  # which `step --methods` runs
