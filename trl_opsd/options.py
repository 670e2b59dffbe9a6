# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Validation of options: the kind of a value is its annotation, and its range stands in the annotation too.

    share: Share = 0.5              # a number from 0 to 1
    k: Count = 1                    # a whole number from 1 on
    show: Annotated[str, OneOf(("answer", "shortest"))] = "answer"

Options of the config, of methods, of sources and of conditions are all checked here. An annotation of another kind is a
class or left unchecked, and an option at its default is taken as it is.
"""

import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin


@dataclass(frozen=True)
class Interval:
    """
    Interval of numbers, without an end that is left out.

    Args:
        least, most (`float`): Ends that belong to it.
        above, below (`float`): Ends that do not.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        if -math.inf < self.least and self.most < math.inf:
            return f"between {self.least:g} and {self.most:g}"
        ends = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        return " and ".join(f"{word} {end:g}" for word, end in ends.items() if math.isfinite(end))


@dataclass(frozen=True)
class OneOf:
    """
    Set of values that an option may have.

    Args:
        values (`Collection`): The values, by which errors name them.
    """

    values: Collection[Any]

    def __contains__(self, value: Any) -> bool:
        return any(isinstance(value, type(one)) and value == one for one in self.values)

    def __str__(self) -> str:
        return f"one of {list(self.values)}"


Count = Annotated[int, Interval(least=1)]
Index = Annotated[int, Interval(least=0)]
Positive = Annotated[float, Interval(above=0)]
NonNegative = Annotated[float, Interval(least=0)]
Share = Annotated[float, Interval(least=0, most=1)]
PositiveShare = Annotated[float, Interval(above=0, most=1)]

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    list: "a list",
    dict: "a mapping",
    types.NoneType: "None",
}
_PLURALS = {int: "whole numbers", float: "finite numbers", str: "texts", dict: "mappings"}
_UNIONS = (Union, types.UnionType)

Made = TypeVar("Made", bound=Callable[..., Any])


def near(name: str, known: Iterable[str]) -> str:
    """Advice on a misspelt name: ` (did you mean ...?)`, or nothing where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def check_option(name: str, value: Any, kind: Any, shows_text: bool = True) -> None:
    """
    Check the kind and the range of an option.

    Args:
        name (`str`): How the error names it.
        value (`Any`): Its value.
        kind (`Any`): Its annotation.
        shows_text (`bool`): Whether the error may show a value that is no number; else it names its type.

    Raises:
        ValueError: If it does not fit; the error says what does.
    """
    if fits(value, kind):
        return
    shown = repr(value)[:200] if shows_text or isinstance(value, Real) else f"a {type(value).__name__}"
    hint = ""
    if isinstance(value, str) and _is_number(value) and shows_text:
        hint = " (YAML takes 1e-3 for a text, and 1.0e-3 for a number)"
    raise ValueError(f"`{name}` must be {description(kind)}, got {shown}{hint}.")


def check_fields(owner: Any, names: Collection[str] | None = None, shows_text: bool = True) -> None:
    """
    Check the fields of a dataclass by their annotations; `choices` in a field's metadata count too.

    Args:
        owner (`Any`): An instance.
        names (`Collection[str]`, *optional*): Names of the fields to check. `None` means all that `__init__` takes.
        shows_text (`bool`): As in [`check_option`].

    Raises:
        ValueError: For the first that does not fit.
    """
    kinds = kinds_of(type(owner))
    for item in fields(owner):
        value = getattr(owner, item.name)
        if not item.init or (names is not None and item.name not in names) or value is item.default:
            continue
        choices = item.metadata.get("choices")
        kind = kinds.get(item.name, Any)
        if choices is not None and (isinstance(value, str) or not fits(value, kind)):
            kind = OneOf(tuple(choices))
        check_option(item.name, value, kind, shows_text)


def checked(function: Made) -> Made:
    """Decorator that checks the arguments of a function by its annotations at each call."""
    signature, kinds = inspect.signature(function), kinds_of(function)
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {name: one.default for name, one in signature.parameters.items() if one.kind not in many}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in named and value is not named[name]:
                check_option(name, value, kinds.get(name, Any))
        return function(*args, **kwargs)

    return typing.cast(Made, call)


@functools.cache
def kinds_of(owner: Any) -> Mapping[str, Any]:
    """Annotations of a function, or of a class and its bases, by name; without those that can't be evaluated."""
    kinds: dict[str, Any] = {}
    for part in reversed(inspect.getmro(owner)) if isinstance(owner, type) else (owner,):
        for name, kind in inspect.get_annotations(part).items():
            holder = types.SimpleNamespace(__annotations__={name: kind})
            names = vars(inspect.getmodule(part) or types.SimpleNamespace())
            try:
                kinds |= typing.get_type_hints(holder, globalns=names, include_extras=True)
            except (NameError, TypeError, SyntaxError):  # of a user's class, whose names may be known elsewhere only
                kinds[name] = Any
    return kinds


def parameters(function: Callable[..., Any]) -> str:
    """Parameters of a function or class as an error shows them: with their kinds, without their ranges."""
    signature = inspect.signature(function)
    try:
        kinds = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    except (NameError, TypeError, AttributeError):
        kinds = {}
    shown = [one.replace(annotation=kinds.get(name, one.annotation)) for name, one in signature.parameters.items()]
    return str(signature.replace(parameters=shown, return_annotation=signature.empty))


def kind_of(default: Any) -> Any:
    """Annotation that an option without one has: numbers are alike, and a default of `None` allows everything."""
    if isinstance(default, Real) and not isinstance(default, bool):
        return float
    return Any if default is None else type(default)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that an annotation describes. Kinds that are not known fit everything."""
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(kind, OneOf):
        return value in kind
    if origin is Annotated:
        marks = [mark for mark in args[1:] if isinstance(mark, (Interval, OneOf))]
        return fits(value, args[0]) and all(value in mark for mark in marks)
    if origin in _UNIONS:
        return any(fits(value, one) for one in args)
    if origin is Literal:
        return fits(value, OneOf(args))
    if kind is None or kind is types.NoneType:
        return value is None
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return number and (kind is int or -math.inf < value < math.inf)
    if origin is list:
        return isinstance(value, (list, tuple)) and all(fits(one, args[0]) for one in value)
    kind = origin or kind
    if kind is Callable:
        return callable(value)
    try:
        return kind is Any or isinstance(value, kind)
    except TypeError:  # such as a protocol, which no value can be asked for
        return True


def description(kind: Any) -> str:
    """Words for the values of a kind."""
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(kind, OneOf):
        return str(kind)
    if origin is Annotated:
        marks = [str(mark) for mark in args[1:] if isinstance(mark, (Interval, OneOf))]
        sets = [mark for mark in marks if mark.startswith("one of")]
        return " ".join(sets or [description(args[0]), *marks])
    if origin in _UNIONS:
        words = list(dict.fromkeys(description(one) for one in args))
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is Literal:
        return str(OneOf(args))
    if origin is list:
        one = get_origin(args[0]) or args[0]
        return f"a list of {_PLURALS[one]}" if one in _PLURALS else f"a list (each {description(args[0])})"
    kind = origin or kind
    if kind is Callable:
        return "a function"
    return _WORDS.get(kind, f"a `{getattr(kind, '__name__', kind)}`")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
