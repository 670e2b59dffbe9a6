# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Registry of sources and conditions: builds them from names and options in a recipe."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import Any

from trl_opsd.conflicts import check_names
from trl_opsd.options import near, parameters
from trl_opsd.privileged import sources
from trl_opsd.privileged.base import Source
from trl_opsd.privileged.baselines import WithBaselines
from trl_opsd.privileged.compose import AllOf, FirstOf, When
from trl_opsd.privileged.conditions import CONDITIONS, Condition
from trl_opsd.privileged.imports import check_maker, check_takes, imported
from trl_opsd.rollouts.view import PrivilegedSource


def find_sources() -> dict[str, type[Source]]:
    """
    Classes with a `NAME` of their own in the files of `trl_opsd/privileged/sources`, by that name.

    Raises:
        ValueError: If two classes have one name.
    """
    found: dict[str, type[Source]] = {}
    for file in pkgutil.iter_modules(sources.__path__):
        module = importlib.import_module(f"{sources.__name__}.{file.name}")
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__ and "NAME" in vars(value):
                if found.setdefault(value.NAME, value) is not value:
                    raise ValueError(f"Two sources have the `NAME` {value.NAME!r}: {found[value.NAME]} and {value}.")
    return dict(sorted(found.items()))


SOURCES = find_sources()
LISTS = {"first_of": FirstOf, "all_of": AllOf}
COMPOUND = (*LISTS, "when", "with_baselines")

Spec = str | dict[str, Any]


def build_source(spec: Spec, where: str = "privileged_source") -> PrivilegedSource:
    """
    Build a source from its description.

    A name stands alone, or as the only key of a mapping to its arguments: a mapping of them, or the first one bare.
    A name with a dot is imported: a function is the source itself, a class or a call with arguments makes it.

    ```yaml
    first_of:
      - when: {condition: failed, source: {sibling: {choice: shortest}}}
      - column: solution
    ```

    Args:
        spec (`str` or `dict`): The description.
        where (`str`): How errors name it.

    Raises:
        ValueError: If a name is unknown or its arguments do not fit.
    """
    name, arguments = _name_and_arguments(spec, where)
    here = f"{where}.{name}"
    if name in LISTS:
        if not isinstance(arguments, list) or not arguments:
            raise ValueError(f"`{here}` must be a list of sources, got {shown(arguments)}.")
        return LISTS[name](*(build_source(part, f"{here}[{i}]") for i, part in enumerate(arguments)))
    if name == "when":
        if not isinstance(arguments, dict) or set(arguments) != {"condition", "source"}:
            raise ValueError(f"`{here}` needs a `condition` and a `source`, got {shown(arguments)}.")
        condition = build_condition(arguments["condition"], f"{here}.condition")
        return When(condition, build_source(arguments["source"], f"{here}.source"))
    if name == "with_baselines":
        if not isinstance(arguments, dict) or "source" not in arguments or set(arguments) - {"source", "alone", "bare"}:
            raise ValueError(f"`{here}` needs a `source`, and takes `alone` and `bare`; got {shown(arguments)}.")
        source = build_source(arguments["source"], f"{here}.source")
        return WithBaselines(source, *(arguments.get(option, True) for option in ("alone", "bare")))
    return _made(name, arguments, SOURCES, here)


def build_condition(spec: Spec, where: str = "condition") -> Condition:
    """Build a condition from its description, which is that of a source."""
    name, arguments = _name_and_arguments(spec, where)
    return _made(name, arguments, CONDITIONS, f"{where}.{name}")


def outline(spec: Spec) -> str:
    """Names of a description without their options: for logs and model cards, which must not hold its texts."""
    name, arguments = _name_and_arguments(spec, "privileged_source")
    if name in LISTS:
        return f"{name}({', '.join(outline(part) for part in arguments)})"
    if name == "when":
        return f"when({_name_and_arguments(arguments['condition'], 'condition')[0]}, {outline(arguments['source'])})"
    if name == "with_baselines":
        return f"with_baselines({outline(arguments['source'])})"
    return name


def shown(spec: Any) -> str:
    """Description in an error: the names alone, as values may be privileged texts or addresses with a password."""
    if isinstance(spec, dict):
        return f"{{{', '.join(f'{name!r}: ...' for name in spec)}}}"
    return f"[{', '.join(map(shown, spec))}]" if isinstance(spec, list) else repr(spec)[:80]


def _name_and_arguments(spec: Any, where: str) -> tuple[str, Any]:
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, dict) and len(spec) == 1:
        ((name, arguments),) = spec.items()
        return str(name), {} if arguments is None else arguments
    raise ValueError(
        f"`{where}` must be a name, or a mapping with one name as its key, like {{'column': 'solution'}}; got "
        f"{shown(spec)}."
    )


def _made(name: str, arguments: Any, known: dict[str, Callable[..., Any]], where: str) -> Any:
    makers = known
    if name not in known:
        if "." not in name:
            names = sorted([*known, *(COMPOUND if known is SOURCES else ())])
            raise ValueError(
                f"`{where}`: there is no {name!r}{near(name, names)}. The names are {names}; one with a dot is "
                "imported."
            )
        makers = {name: imported(name, where)}
    maker = makers[name]
    if not callable(maker):
        raise ValueError(f"`{where}`: {name} is {maker!r}, and no function or class.")
    if name not in known:
        takes = 1 if known is SOURCES else 2
        if not isinstance(maker, type) and arguments == {}:
            check_takes(maker, name, where, takes)
            return maker  # a user's function is the source itself
        check_maker(maker, name, where, takes)
    positional, named = ((), arguments) if isinstance(arguments, dict) else ((arguments,), {})
    if positional and isinstance(maker, type):
        positional, named = (), {_first_option(maker): arguments}
    options = inspect.signature(maker).parameters
    if all(one.kind is not one.VAR_KEYWORD for one in options.values()):
        check_names(where, named, options, f"`{name}`")
    try:
        inspect.signature(maker).bind(*positional, **named)
    except TypeError as error:
        raise ValueError(f"`{where}`: {error}. It takes {parameters(maker)}.") from None
    try:
        return maker(*positional, **named)
    except (TypeError, ValueError, OSError, re.error) as error:
        raise ValueError(f"`{where}`: {error}") from error


def _first_option(maker: type) -> str:
    """Option that a bare argument sets: the first of the class itself, not of its base."""
    own = [name for name in inspect.get_annotations(maker) if not name.startswith("_")]
    return own[0] if own else next(iter(inspect.signature(maker).parameters))
