# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Defaults of a method: its values stand where the user gives none, in Python, in a recipe and on the command line.

A parser gives a config every option, so a config cannot tell what the user wrote from what the parser filled in.
[`OPSDParser`] therefore puts the method's values before the recipe's; after [`~trl.TrlParser`] a method changes none.
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
    """Decorate a config class with the option `method`: it then sets what the caller leaves out."""
    plain = config.__init__

    @functools.wraps(plain)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        names = [item.name for item in fields(config) if item.init]
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.get("method") is not None:
            given = {**method_of(given["method"]).defaults, **given}
        plain(self, **given)

    config.__init__ = init
    return config


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
        return super().parse_args_and_config(args, **how)


def _named(args: list[str], option: str) -> str | None:
    """Value of an option on the command line."""
    for i, text in enumerate(args):
        if text.startswith(f"{option}="):
            return text.split("=", 1)[1]
        if text == option and i + 1 < len(args):
            return args[i + 1]
    return None
