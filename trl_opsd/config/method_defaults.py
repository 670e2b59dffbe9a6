# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A method's values stand where the user gives none: in Python, in a recipe and on the command line."""

import functools
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import MISSING, fields
from typing import Any

import yaml
from trl import TrlParser

from trl_opsd.methods.registry import method_of


# Whether the parser at work has put the method's values before what was given
_KNOWS_METHODS: ContextVar[bool] = ContextVar("knows_methods", default=False)


def takes_method_defaults(config: type) -> type:
    """Decorate a config class with the option `method`: it then sets what the caller leaves out."""
    plain = config.__init__

    @functools.wraps(plain)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        names = [item.name for item in fields(config) if item.init]
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.get("method") is not None:
            defaults = method_of(given["method"]).defaults
            if not _KNOWS_METHODS.get():
                _check_parsed(config, given, defaults, len(names))
            given = {**defaults, **given}
        plain(self, **given)

    config.__init__ = init
    return config


def _check_parsed(config: type, given: dict[str, Any], defaults: dict[str, Any], count: int) -> None:
    """A parser gives every option, so that a method would change none. `OPSDParser` puts the method's values before the
    recipe's; after another parser the package's own stand where the method's should."""
    plain = {item.name: item.default for item in fields(config) if item.default is not MISSING}
    changed = [name for name in defaults if defaults[name] != plain.get(name)]
    if changed and len(given) == count and all(given[name] == plain.get(name) for name in changed):
        raise ValueError(
            f"`method={given['method']!r}` came through a parser that gives every option and so leaves none to the "
            "method. Parse with `trl_opsd.OPSDParser`, which knows methods."
        )


class OPSDParser(TrlParser):
    """TRL's parser, with the defaults of the `method` that a recipe or the command line names before both."""

    def parse_args_and_config(self, args: Sequence[str] | None = None, **how: Any) -> tuple:
        args = list(sys.argv[1:] if args is None else args)
        name = _named(args, "--method")
        config = _named(args, "--config")
        if name is None and config is not None:
            with open(config, encoding="utf-8") as file:
                recipe = yaml.safe_load(file)
            name = recipe.get("method") if isinstance(recipe, dict) else None
        if name is not None:
            self.set_defaults_with_config(**method_of(name).defaults)
        token = _KNOWS_METHODS.set(True)
        try:
            return super().parse_args_and_config(args, **how)
        finally:
            _KNOWS_METHODS.reset(token)


def _named(args: list[str], option: str) -> str | None:
    """Value of an option on the command line."""
    for i, text in enumerate(args):
        if text.startswith(f"{option}="):
            return text.split("=", 1)[1]
        if text == option and i + 1 < len(args):
            return args[i + 1]
    return None
