# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Checks of options beside each other before torch is imported, with the values that a method sets.

The config and the trainer check all of this again, and more; the sentences that both say are in `trl_opsd.conflicts`.
"""

import json
import re
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from trl_opsd.cli.catalog import catalog
from trl_opsd.cli.errors import UserError
from trl_opsd.conflicts import NO_REWARD, check_column_options, check_names, check_reward, check_template
from trl_opsd.options import near


# Options that name objects by dotted paths
PATHS = ("reward_funcs", "score_func", "tools", "environment_factory", "rollout_func", "method")
REWARDS = ("reward_funcs", "reward_model_name_or_path", "environment_factory")
# What gives a module names that its text does not show
DYNAMIC = re.compile(r"import \*|__getattr__|globals\(|setattr\(|exec\(")


def check_combinations(given: Mapping[str, Any]) -> None:
    """
    Check the options of a recipe and its command line beside each other.

    Args:
        given (`Mapping[str, Any]`): Values of the options that are set.

    Raises:
        UserError: For the first mistake.
    """
    method = catalog()["methods"].get(str(given.get("method")), {})
    values = {**method.get("defaults", {}), **given}
    try:
        check_paths(given)
        check_template("privileged_template", str(values.get("privileged_template", "{privileged_context}")))
        check_source_options(values.get("privileged_source"), "privileged_source")
        check_source_options(mapping(values.get("turns")).get("source"), "turns.source")
        if values.get("privileged_source") is not None:
            own = given.get("privileged_source") is None
            check_column_options(given, given["method"] if own else None)
        if method:
            given_options = mapping(given.get("method_options"))
            check_names("method_options", given_options, method["options"], f"the method {given['method']!r}")
        check_has_reward(values, method)
    except ValueError as error:
        raise UserError(str(error)) from error


def mapping(value: Any) -> Mapping[str, Any]:
    """Value of an option as a mapping: JSON from the command line is read; what is none is empty."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def check_source_options(spec: Any, where: str) -> None:
    """Refuse options that a source or a condition of the package does not have, by their names in the catalog."""
    for name, inner in (mapping(spec) if isinstance(spec, str | dict) else {}).items():
        here = f"{where}.{name}"
        if name in ("first_of", "all_of"):
            for i, part in enumerate(inner if isinstance(inner, list) else ()):
                check_source_options(part, f"{here}[{i}]")
        elif name in ("when", "with_baselines"):
            parts = inner if isinstance(inner, dict) else {}
            check_source_options(parts.get("source"), f"{here}.source")
            check_source_options(parts.get("condition"), f"{here}.condition")
        elif isinstance(inner, dict):
            kind = "conditions" if where.endswith(".condition") else "sources"
            if one := catalog()[kind].get(name):
                check_names(here, inner, one["options"], f"`{name}`")
                if isinstance(inner.get("template"), str):
                    check_template(f"{here}.template", inner["template"])


def check_has_reward(values: Mapping[str, Any], method: Mapping[str, Any]) -> None:
    """Refuse a method, or a source by itself, that looks at rewards in a run without any."""
    if any(values.get(name) for name in REWARDS):
        return
    name, source = values.get("method"), values.get("privileged_source")
    if method:
        check_reward(name, method["needs_reward"], 0.0)
        if method["reads_reward"]:
            raise UserError(NO_REWARD.format(f"The method {name!r}"))
    described = mapping(source)
    source = next(iter(described)) if len(described) == 1 else source
    if isinstance(source, str) and catalog()["sources"].get(source, {}).get("needs_reward"):
        own = method and values["privileged_source"] == method["defaults"].get("privileged_source")
        raise UserError(
            NO_REWARD.format(f"The source `{source}`") + (f" It is a source of the method {name!r}." if own else "")
        )


def check_paths(given: Mapping[str, Any]) -> None:
    """Refuse dotted paths that are not there, in the working directory too. Nothing of the user's is imported."""
    if str(Path.cwd()) not in sys.path:  # however a training is started
        sys.path.insert(0, str(Path.cwd()))
    for option in PATHS:
        names = given.get(option)
        for name in names if isinstance(names, list) else [names]:
            if isinstance(name, str) and "." in name and "[" not in name:
                check_path(option, name)


def check_path(option: str, name: str) -> None:
    """Refuse a dotted path whose module is not there, or whose last part does not occur in it."""
    module, _, attribute = name.rpartition(".")
    spec, missing, beside = find_module(module)
    if spec is None and find_module(f"trl_opsd.{module}")[0] is not None:  # an old path of the package's examples
        spec, _, beside = find_module(f"trl_opsd.{module}")
    if spec is None:
        raise UserError(
            f"`{option}`: {name} can't be imported: there is no module {missing}{near(missing, beside)} in the working "
            "directory or among the installed packages."
        )
    path = Path(spec.origin or "")
    if path.suffix != ".py" or not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    if not DYNAMIC.search(text) and not re.search(rf"\b{re.escape(attribute)}\b", text):
        names = re.findall(r"^(?:def |class |async def )?(\w+)(?: *[:=(]|:)", text, flags=re.M)
        raise UserError(
            f"`{option}`: {name} can't be imported: {module} has no attribute {attribute!r}{near(attribute, names)}."
        )


def find_module(name: str) -> tuple[ModuleSpec | None, str, list[str]]:
    """
    Find a module without importing it or the packages above it.

    Returns:
        Its spec, or `None` with the full name of the first part that is missing, and the names beside that part.
    """
    places, found, spec = None, "", None  # the finders look for a first part in sys.path
    for part in name.split("."):
        whole = found + part
        spec = next(filter(None, (finder.find_spec(whole, places) for finder in sys.meta_path)), None)
        if spec is None:
            files = [path for place in places or [Path.cwd()] for path in Path(place).glob("*")]
            return None, whole, [found + path.stem for path in files if path.suffix in ("", ".py")]
        places, found = list(spec.submodule_search_locations or ()), f"{whole}."
    return spec, name, []
