# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Deprecation of renamed public names: the old one works for one version, with a warning that gives the new one."""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any


def _warn(old: str, new: str) -> None:
    text = f"{old} is now {new}; the old name goes in version 0.3."
    warnings.warn(text, FutureWarning, stacklevel=3)


def deprecated_names(module: str, names: dict[str, str]) -> Callable[[str], Any]:
    """
    Module-level `__getattr__` that finds renamed public names. It imports the new home only when a name is asked for,
    so that no import of the package depends on it.

    Args:
        module (`str`): Name of the module, `__name__`.
        names (`dict[str, str]`): New dotted path of each old name.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"`{module}.{name}`", f"`{names[name]}`")
        home, _, attribute = names[name].rpartition(".")
        return getattr(importlib.import_module(home), attribute)

    return find


def renamed_arguments(**names: str) -> Callable[[type], type]:
    """Class decorator that takes keyword arguments by their old names too, `old="new"`."""

    def decorate(cls: type) -> type:
        plain = cls.__init__

        @functools.wraps(plain)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{cls.__name__} got {new!r} twice, also by its old name {old!r}.")
                _warn(f"The argument {old!r} of {cls.__name__}", repr(new))
                kwargs[new] = kwargs.pop(old)
            plain(self, *args, **kwargs)

        cls.__init__ = init
        return cls

    return decorate


def renamed_attribute(owner: str, old: str, new: str) -> property:
    """Property that reads an attribute by its old name."""

    def read(self: Any) -> Any:
        _warn(f"`{owner}.{old}`", f"`{new}`")
        return getattr(self, new)

    return property(read)
