# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Registry of methods: the files of `trl_opsd/methods/papers` by name, or a user's method by its dotted path."""

import importlib
import pkgutil
from typing import Any

from trl_opsd.conflicts import check_names
from trl_opsd.methods import papers
from trl_opsd.methods.base import Method
from trl_opsd.options import check_option, near
from trl_opsd.privileged.imports import imported


def method_names() -> list[str]:
    """Names of the package's methods, one for each file of `trl_opsd/methods/papers`."""
    found = pkgutil.iter_modules(papers.__path__)
    return sorted(module.name for module in found if not module.ispkg and not module.name.startswith("_"))


def method_of(name: str) -> Method:
    """
    Method by its name, or by the dotted path of a user's own [`Method`].

    Raises:
        ValueError: If there is no such method.
    """
    check_option("method", name, str)
    if "." in name:
        method = imported(name, "method")
    elif name in method_names():
        method = importlib.import_module(f"trl_opsd.methods.papers.{name}").METHOD
    else:
        raise ValueError(
            f"`method` is {name!r}{near(name, method_names())}: it must be one of {method_names()}, or the dotted path "
            "of a `Method` of your own."
        )
    if not isinstance(method, Method):
        raise ValueError(f"`method` names {name}, which is no `trl_opsd.methods.Method` but {method!r}.")
    return method


def options_of(method: Method, name: str, given: dict[str, Any] | None) -> dict[str, Any]:
    """
    Options of a method: its defaults, overridden by those that the user gave.

    Raises:
        ValueError: If an option does not exist, or its value does not fit the method's `option_types`.
    """
    options = dict(method.options)
    check_names("method_options", given or {}, options, f"the method {name!r}")
    for option, value in (given or {}).items():
        check_option(f"method_options.{option}", value, method.type_of(option))
        options[option] = value
    return options
