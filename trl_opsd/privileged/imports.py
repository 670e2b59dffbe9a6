# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Import of what a recipe names by its dotted path: sources, conditions, methods, rewards, environments and the like.

A recipe is code: it runs what it names. The checks here keep it to objects that were written for their place, by their
signature and outside the standard library, so that `os.system` is neither a source nor a reward.
"""

import functools
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any

from trl_opsd.options import near
from trl_opsd.privileged.base import Source


# The package's examples, by the path that recipes gave them while they stood in a checkout alone
EXAMPLES = ("examples.tasks", "examples.agents.calculator", "examples.agents.shop")
COMPLETIONS = ("prompts", "completions", "completion_ids")  # names by which TRL gives them to a reward function


def imported(name: str, where: str, takes: int | None = None) -> Any:
    """
    Object that a dotted path names.

    Args:
        name (`str`): The path.
        where (`str`): Option that names it, for errors.
        takes (`int`, *optional*): Number of arguments with which it will be called.

    Raises:
        ValueError: If it can't be imported, is of the standard library, or does not take that many arguments.
    """
    module, _, attribute = name.rpartition(".")
    if module in EXAMPLES and not _is_found(module):
        module = f"trl_opsd.{module}"
    _refuse_standard(module, name, where)
    try:
        holder = importlib.import_module(module)
        if not hasattr(holder, attribute):
            raise AttributeError(f"{module} has no attribute {attribute!r}{near(attribute, dir(holder))}")
        found = getattr(holder, attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two of two dots in a row
        raise ValueError(f"`{where}`: {name} can't be imported: {error}") from error
    _refuse_standard(home(found), name, where)
    if takes is not None:
        check_takes(found, name, where, takes)
    return found


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def home(found: Any) -> str:
    """Name of the module in which a function or class was written, however it was imported; else nothing."""
    while isinstance(found, functools.partial):
        found = found.func
    if not inspect.isroutine(found) and not isinstance(found, type):
        return ""
    return getattr(found, "__module__", None) or type(found).__module__


def _refuse_standard(module: str, name: str, where: str) -> None:
    if module.split(".")[0] in sys.stdlib_module_names:
        raise ValueError(
            f"`{where}`: {name} is of Python's standard library, where nothing was written for this place. Name a "
            "function or a class of your own."
        )


def check_takes(found: Any, name: str, where: str, count: int) -> None:
    """
    Check that a function, or an object that is called like one, takes a number of arguments.

    Raises:
        ValueError: If it is none, or takes others.
    """
    if isinstance(found, type) or not callable(found):
        raise ValueError(f"`{where}`: {name} is {found!r}, and no function.")
    if not _takes(found, count):
        raise ValueError(f"`{where}`: {name} is called with {count} argument(s), which it does not take.")


def check_reward(found: Any, name: str, where: str) -> None:
    """
    Check that an object is a reward function by its signature: it takes completions by the names that TRL gives them.

    Raises:
        ValueError: If it is none.
    """
    parameters = _parameters(found) if callable(found) and not isinstance(found, type) else None
    takes_all = parameters is not None and [one.kind for one in parameters] == [inspect.Parameter.VAR_KEYWORD]
    if not takes_all and not {one.name for one in parameters or ()} & set(COMPLETIONS):
        raise ValueError(
            f"`{where}`: {name} is no reward function, which takes one of {list(COMPLETIONS)} by name, as TRL gives "
            "them, and `**kwargs`."
        )


def check_maker(maker: Any, name: str, where: str, takes: int) -> None:
    """
    Check that an object was written to be called with a recipe's options: it is a class whose instances are sources or
    conditions, or a function that makes one. A class that is no [`Source`], and a function that does not say what it
    returns, must come from a module that uses this package.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(maker, type):
        call = next((vars(part)["__call__"] for part in maker.__mro__ if "__call__" in vars(part)), None)
        fits = call is not None and _takes(call, takes + 1) and (issubclass(maker, Source) or _uses_package(maker))
    else:
        fits = callable(maker) and _makes_function(maker)
    if not fits:
        raise ValueError(
            f"`{where}`: {name} is no function or class that makes what belongs here, so it is not called. A function "
            f"says `-> Callable` of what it returns; instances of a class are called with {takes} argument(s), and it "
            "derives from `Source` or stands in a module that uses trl_opsd."
        )


def _makes_function(maker: Callable[..., Any]) -> bool:
    try:
        result = typing.get_type_hints(maker).get("return")
    except (NameError, TypeError):
        result = None
    if result is None:
        return "return" not in getattr(maker, "__annotations__", {}) and _uses_package(maker)
    return (typing.get_origin(result) or result) is Callable or (
        isinstance(result, type) and issubclass(result, Source)
    )


def _uses_package(found: Any) -> bool:
    """Whether the module in which `found` was written holds something of this package."""
    values = vars(sys.modules.get(home(found), object)).values()
    origins = (value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None) for value in values)
    return any(str(origin).split(".")[0] == __name__.split(".")[0] for origin in origins)


def _takes(found: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(found).bind(*[None] * count)
    except (TypeError, ValueError):  # other arguments, or a signature that can't be read
        return False
    return True


def _parameters(found: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):
        return []
