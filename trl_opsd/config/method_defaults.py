# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Defaults of a method: its values stand where the user gives none, in Python, in a recipe and on the command line.

A parser gives a config every option, so a config cannot tell what the user wrote from what the parser filled in.
[`OPSDParser`] therefore puts the method's values before the recipe's; after [`~trl.TrlParser`] a method changes none.
It also tells the config where each value is from.
"""

import functools
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import yaml
from trl import TrlParser

from trl_opsd.methods.registry import method_of


def takes_method_defaults(config: type) -> type:
    """
    Decorate a config class with the option `method`: it then sets what the caller leaves out.

    Instances get the attribute `origins`, a dict from the name of each option that is no default to its origin.
    """
    plain = config.__init__

    @functools.wraps(plain)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        names = [item.name for item in fields(config) if item.init]
        given = dict(zip(names, args, strict=False)) | kwargs
        self.origins = dict.fromkeys(given, "given")
        if given.get("method") is not None:
            defaults = method_of(given["method"]).defaults
            self.origins = dict.fromkeys(defaults, f"method {given['method']}") | self.origins
            given = {**defaults, **given}
        plain(self, **given)

    config.__init__ = init
    return config


class OPSDParser(TrlParser):
    """TRL's parser, with the defaults of the `method` that a recipe or the command line names before both."""

    def parse_args_and_config(self, args: Sequence[str] | None = None, **how: Any) -> tuple:
        args = list(sys.argv[1:] if args is None else args)
        name = _named(args, "--method")
        config = _named(args, "--config")
        recipe = {}
        if config is not None:
            with open(config, encoding="utf-8") as file:
                recipe = yaml.safe_load(file)
            recipe = recipe if isinstance(recipe, dict) else {}
            name = recipe.get("method") if name is None else name
        defaults = method_of(name).defaults if name is not None else {}
        self.set_defaults_with_config(**defaults)
        parsed = super().parse_args_and_config(args, **how)
        line = [text[2:].partition("=")[0].replace("-", "_") for text in args if text.startswith("--")]
        origins = dict.fromkeys(defaults, f"method {name}") | dict.fromkeys(recipe, f"recipe {config}")
        origins |= dict.fromkeys(line, "command line")
        for one in parsed:
            if hasattr(one, "origins"):
                one.origins = {option: origins[option] for option in origins if hasattr(one, option)}
        return parsed


def _named(args: list[str], option: str) -> str | None:
    """Value of an option on the command line."""
    for i, text in enumerate(args):
        if text.startswith(f"{option}="):
            return text.split("=", 1)[1]
        if text == option and i + 1 < len(args):
            return args[i + 1]
    return None
