# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Methods by name: the files of `trl_opsd/methods/papers`, or one of the user's by its dotted path."""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from trl_opsd.methods.base import Method
from trl_opsd.privileged.base import imported


_FOLDER = Path(__file__).parent / "papers"


def method_names() -> list[str]:
    """Names of the methods of this package."""
    found = pkgutil.iter_modules([str(_FOLDER)])
    return sorted(module.name for module in found if not module.ispkg and not module.name.startswith("_"))


def method_of(name: str) -> Method:
    """
    A method by its name, or by the dotted path of a [`Method`] of one's own.

    Raises:
        ValueError: If there is none.
    """
    if "." in name:
        method = imported(name, "method")
    elif name in method_names():
        method = importlib.import_module(f"trl_opsd.methods.papers.{name}").METHOD
    else:
        raise ValueError(
            f"`method` is {name!r}: it must be one of {method_names()}, or the dotted path of a `Method` of your own."
        )
    if not isinstance(method, Method):
        raise ValueError(f"`method` names {name}, which is no `trl_opsd.methods.Method` but {method!r}.")
    return method


def options_of(method: Method, name: str, given: dict[str, Any] | None) -> dict[str, Any]:
    """
    A method's options with what the user gave.

    Raises:
        ValueError: If an option does not exist, or is of another type than its default.
    """
    options = dict(method.options)
    for option, value in (given or {}).items():
        if option not in options:
            raise ValueError(
                f"`method_options` has {option!r}, and the method {name!r} has no such option; it has "
                f"{sorted(options) or 'none'}."
            )
        default = options[option]
        number = isinstance(default, (int, float)) and not isinstance(default, bool)
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) if number else None
        if default is not None and not (fits if number else isinstance(value, type(default))):
            raise ValueError(f"`method_options`: {option!r} must be like its default, {default!r}; got {value!r}.")
        options[option] = value
    return options
