# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
trl_opsd/cli/catalog.json, made of the dataclasses of options, and of the methods' and sources' docstrings:

python scripts/catalog.py
"""

import dataclasses
import importlib
import inspect
import json
import typing
from importlib.metadata import version
from typing import Any

from accelerate.commands.launch import launch_command_parser
from trl import rewards

from trl_opsd.cli.arguments import make_parser
from trl_opsd.cli.catalog import FILE
from trl_opsd.methods import method_names, method_of
from trl_opsd.privileged.conditions import CONDITIONS
from trl_opsd.privileged.named import COMPOUND, SOURCES


METHOD_FIELDS = (
    "title", "paper", "label", "authors", "needs", "needs_reward", "reads_reward", "on_arxiv", "defaults", "options",
)  # fmt: skip


def origin_of(name: str, kinds: list[type]) -> str:
    """Package that first defines an option."""
    kind = next(kind for kind in kinds if name in kind.__dataclass_fields__)
    homes = [base for base in kind.__mro__ if name in inspect.get_annotations(base)]
    return homes[-1].__module__.split(".")[0]


def type_of(name: str, kinds: list[type]) -> str:
    """Annotation of an option as text."""
    kind = next(kind for kind in kinds if name in kind.__dataclass_fields__)
    hint = typing.get_type_hints(kind)[name]
    return str(hint if typing.get_origin(hint) or not isinstance(hint, type) else hint.__name__).replace("typing.", "")


def plain(value: Any) -> Any:
    """A value that JSON holds; others as text."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    value = getattr(value, "value", value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def options() -> dict[str, Any]:
    parser = make_parser()
    kinds = list(parser.dataclass_types)
    # Reversed, as the option itself comes before the `--no_X` of what is true by default
    actions = {action.dest: action for action in reversed(parser._actions)}
    names = [item.name for kind in kinds for item in dataclasses.fields(kind) if item.init]
    found = {}
    for name in dict.fromkeys(names):
        action = actions[name]
        found[name] = {
            "type": type_of(name, kinds),
            "default": plain(action.default),
            "choices": plain(list(action.choices)) if action.choices else None,
            "many": action.nargs in ("+", "*"),
            "help": " ".join((action.help or "").split()),
            "origin": origin_of(name, kinds),
        }
    return found


def launch_options() -> dict[str, bool]:
    """Options of `accelerate launch`, and whether they take a value."""
    actions = launch_command_parser()._actions
    names = {name: action.nargs != 0 for action in actions for name in action.option_strings if name.startswith("--")}
    return {name[2:].replace("-", "_"): takes for name, takes in sorted(names.items()) if name != "--help"}


def first_sentence(text: str) -> str:
    return " ".join(text.split()).split(". ")[0].rstrip(".") + "."


def methods() -> dict[str, Any]:
    found = {}
    for name in method_names():
        method = method_of(name)
        text = inspect.cleandoc(importlib.import_module(f"trl_opsd.methods.papers.{name}").__doc__)
        found[name] = {field: plain(getattr(method, field)) for field in METHOD_FIELDS}
        found[name] |= {"summary": first_sentence(text), "text": text}
    return found


def named(known: dict[str, Any]) -> dict[str, Any]:
    """Summary, text and options of sources or conditions."""
    found = {}
    for name, maker in sorted(known.items()):
        text = inspect.cleandoc(maker.__doc__)
        parameters = inspect.signature(maker).parameters.values()
        defaults = {one.name: "" if one.default is one.empty else repr(one.default) for one in parameters}
        found[name] = {"summary": first_sentence(text), "text": text, "options": defaults}
        found[name] |= {"needs_reward": getattr(maker, "needs_reward", False) is True}
    return found


def contents() -> str:
    made = {
        "versions": {name: version(name) for name in ("accelerate", "trl", "transformers")},
        "options": options(),
        "launch": launch_options(),
        "methods": methods(),
        "sources": named(SOURCES),
        "conditions": named(CONDITIONS),
        "compound": list(COMPOUND),
        "rewards": sorted(name for name in dir(rewards) if callable(getattr(rewards, name)) and "reward" in name),
    }
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(contents(), encoding="utf-8")
    print(f"{FILE} holds {len(options())} options and {len(methods())} methods.")
