# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Checks of a recipe and a command line before anything heavy is imported: spelling, kinds of values, names and folders.

What passes here is parsed by TRL's parser and checked by the config; this is no second truth, only an early one.
"""

import json
import math
from collections.abc import Collection, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from trl_opsd.cli.catalog import catalog
from trl_opsd.cli.combinations import check_combinations, mapping
from trl_opsd.cli.errors import UserError
from trl_opsd.cli.hub_check import beside
from trl_opsd.cli.prefix import check_prefix
from trl_opsd.cli.recipes import find_recipe
from trl_opsd.examples.data import NAMES
from trl_opsd.options import near


TRUTHS = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")
REQUIRED = {
    "model_name_or_path": "name a folder or a Hub id",
    "output_dir": "say where the trained model goes",
}
# Keys of a recipe that are no options: environment variables, which TRL sets
EXTRA_KEYS = ("env",)


def spelled(argv: Sequence[str]) -> list[str]:
    """Command line with `--name value` for `--name=value`, underscores in names, and the file of the recipe."""
    args: list[str] = []
    for text in argv:
        name, equals, value = text.partition("=")
        if text.startswith("--"):
            args += ["--" + name[2:].replace("-", "_"), *([value] if equals else [])]
        else:
            args.append(text)
    if "--config" in args:
        place = args.index("--config") + 1
        if place == len(args):
            raise UserError("`--config` has no value: name a recipe or a file.")
        args[place] = str(find_recipe(args[place]))
    return args


def read_recipe(path: str | Path) -> dict[str, Any]:
    """
    Options of a recipe.

    Raises:
        UserError: If it is no YAML mapping; it names the line.
    """
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{place}: {error.problem or error.context}. A recipe is YAML.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{path} must hold options, `name: value` on each line; it holds {type(recipe).__name__}.")
    return {str(name): value for name, value in recipe.items()}


def on_command_line(args: Sequence[str]) -> dict[str, Any]:
    """Options of a command line: text, a list of texts where there are several, `True` where there is none."""
    given: dict[str, list[str]] = {}
    name = None
    for text in args:
        if text.startswith("--"):
            name = text[2:]
            given[name] = []
        elif name is None:
            raise UserError(f"{text!r} belongs to no option: a recipe is `--config {text}`.")
        else:
            given[name].append(text)
    return {name: texts[0] if len(texts) == 1 else texts or True for name, texts in given.items()}


def check_spelling(names: Iterable[str], where: str, own: Iterable[str] = ()) -> None:
    """
    Refuse options that nobody reads; only where the catalog was made with the installed versions.

    Args:
        names (`Iterable[str]`): Options that are given.
        where (`str`): Where, for the error.
        own (`Iterable[str]`): Options of the command itself, which may be meant.
    """
    options = catalog()["options"]
    if any(version(package) != made for package, made in catalog()["versions"].items()):
        return
    # argparse has `--no_X` for what is true by default
    known = {*options, *EXTRA_KEYS, *(f"no_{name}" for name, one in options.items() if one["default"] is True)}
    for name in names:
        if name not in known:
            raise UserError(
                f"unknown option in {where}: `{name}`{near(name, known.union(own))}. `trl-opsd options WORD` searches."
            )


def check_value(name: str, value: Any) -> None:
    """Refuse a value that its option cannot take: no number, no truth value, none of its names."""
    option = catalog()["options"].get(name)
    if option is None or (value is None and "None" in option["type"]):
        return
    kind = option["type"].replace(" | None", "")
    texts = [str(item) for item in value] if isinstance(value, list) and option["many"] else [str(value)]
    if kind in ("int", "float") and not isinstance(value, (list, dict)):
        if isinstance(value, bool) or not is_number(str(value), kind):
            raise UserError(f"`{name}` must be {'a whole number' if kind == 'int' else 'a number'}, got {value!r}.")
    elif kind in ("int", "float", "bool") and isinstance(value, (list, dict)):
        raise UserError(f"`{name}` takes one value, got {value!r}.")
    elif kind == "bool" and str(value).lower() not in TRUTHS:
        raise UserError(f"`{name}` must be true or false, got {value!r}.")
    elif name == "method" and "." not in str(value) and value not in catalog()["methods"]:
        advice = near(str(value), catalog()["methods"])
        raise UserError(
            f"`method` is {value!r}, and there is none of that name{advice}. `trl-opsd methods` lists them."
        )
    elif option["choices"] and isinstance(value, str):
        for text in texts:
            if text not in option["choices"]:
                names = ", ".join(map(str, option["choices"]))
                raise UserError(f"`{name}` is {text!r}{near(text, option['choices'])}: it must be one of {names}.")


def is_number(text: str, kind: str) -> bool:
    """Whether a text is a number of a kind; nan is none."""
    try:
        value = float(text)
    except ValueError:
        return False
    return not math.isnan(value) and (kind == "float" or value.is_integer())


def check_source(spec: Any, where: str = "privileged_source") -> None:
    """Refuse unknown names of sources and conditions; their options are checked when they are built."""
    if isinstance(spec, str) and spec.startswith("{"):  # from the command line
        try:
            spec = json.loads(spec)
        except ValueError as error:
            raise UserError(f"`{where}` is no JSON: {error}.") from error
    known, conditions = catalog()["sources"], catalog()["conditions"]
    if isinstance(spec, dict) and len(spec) == 1:
        ((name, inner),) = spec.items()
    else:
        name, inner = spec, None
    if not isinstance(name, str) or "." in name:
        return
    if name in ("first_of", "all_of") and isinstance(inner, list):
        for i, part in enumerate(inner):
            check_source(part, f"{where}.{name}[{i}]")
    elif name in ("when", "with_baselines") and isinstance(inner, dict):
        check_source(inner.get("source"), f"{where}.{name}.source")
        condition = inner.get("condition")
        condition = next(iter(condition), None) if isinstance(condition, dict) else condition
        if isinstance(condition, str) and "." not in condition and condition not in conditions:
            advice = near(condition, conditions)
            raise UserError(
                f"`{where}.when`: there is no condition {condition!r}{advice}. `trl-opsd sources` lists them."
            )
    elif name not in known and name not in catalog()["compound"]:
        raise UserError(f"`{where}`: there is no source {name!r}{near(name, known)}. `trl-opsd sources` lists them.")


def check_rewards(names: Any, option: str = "reward_funcs") -> None:
    """Refuse unknown names of rewards; dotted paths are imported later."""
    for name in [names] if isinstance(names, str) else names or ():
        if isinstance(name, str) and "." not in name and name not in catalog()["rewards"]:
            raise UserError(
                f"`{option}`: TRL has no reward {name!r}{near(name, catalog()['rewards'])}. Name a function of "
                f"your own by its dotted path, such as my_module.{name}."
            )


def check_folder(option: str, name: Any) -> None:
    """Refuse a folder that is not there, which would otherwise be looked up on the Hub."""
    if not isinstance(name, str) or Path(name).expanduser().exists():
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"`{option}` is the folder {name}, which does not exist{beside(name)}: {advice_on(name)}.")


def advice_on(folder: str) -> str:
    """Advice on making a missing folder."""
    task = Path(folder).name
    if Path(folder).as_posix() == f"demo/data/{task}" and task in NAMES:
        return f"make it with `trl-opsd data {task}`"
    return "make it with `trl-opsd data smollm2`" if task == "smollm2-135m" else "make it or correct the path"


def options_of(args: Sequence[str], own: Iterable[str] = ()) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """
    Options of a command line as [`spelled`] gives it, and those of its recipe, if it names one.

    Args:
        args (`Sequence[str]`): The command line.
        own (`Iterable[str]`): Options of the command itself, which it has read already.

    Raises:
        UserError: For a misspelt option, or a value that it cannot take.
    """
    line = on_command_line(args)
    path = line.pop("config", None)
    recipe = read_recipe(path) if path else None
    for options, where, meant in ((recipe or {}, str(path), ()), (line, "the command line", own)):
        check_spelling(options, where, meant)
        for name, value in options.items():
            check_value(name, value)
    return line, recipe


def check(args: Sequence[str]) -> dict[str, Any]:
    """
    Check a command line as [`spelled`] gives it, with its recipe.

    Returns:
        `dict[str, Any]`: Values of the options that recipe and command line give; the latter win.

    Raises:
        UserError: For the first mistake.
    """
    line, recipe = options_of(args)
    return check_given((recipe or {}) | line, "" if recipe else " A recipe is named by `--config`.")


def check_given(given: dict[str, Any], advice: str = "", made: Collection[str] = ()) -> dict[str, Any]:
    """
    Check the options of a training beside each other.

    Args:
        given (`dict[str, Any]`): Values of the options that are set.
        advice (`str`): What the error says where one is missing.
        made (`Collection[str]`): Folders that need not be there yet.

    Returns:
        `dict[str, Any]`: The same.

    Raises:
        UserError: For the first mistake.
    """
    for name, remedy in REQUIRED.items():
        if given.get(name) is None:
            raise UserError(f"`{name}` is missing: {remedy}.{advice}")
    if not given.get("dataset_name") and not given.get("datasets"):
        raise UserError("`dataset_name` is missing: name a Hub data set or a local folder.")
    check_source(given.get("privileged_source"))
    check_source(mapping(given.get("turns")).get("source"), "turns.source")
    check_rewards(given.get("reward_funcs"))
    check_rewards(given.get("score_func"), "score_func")
    check_combinations(given)
    check_prefix(given)
    for name in ("model_name_or_path", "dataset_name"):
        if given.get(name) not in made:
            check_folder(name, given.get(name))
    return given
