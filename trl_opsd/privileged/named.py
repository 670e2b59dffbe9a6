# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Sources and conditions by name, so that a recipe needs no Python."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from trl_opsd.privileged import conditions
from trl_opsd.privileged.base import imported
from trl_opsd.privileged.baselines import WithBaselines
from trl_opsd.privileged.compose import AllOf, Cached, FirstOf, When
from trl_opsd.privileged.sources.column import DatasetColumn
from trl_opsd.privileged.sources.controls import Empty, OtherRow, Shuffled, WrongDemonstration
from trl_opsd.privileged.sources.critic import Critic
from trl_opsd.privileged.sources.environment import EnvironmentFeedback
from trl_opsd.privileged.sources.exposure import PartialExposure
from trl_opsd.privileged.sources.feedback import VerifierFeedback
from trl_opsd.privileged.sources.fixed import Fixed
from trl_opsd.privileged.sources.hints import TurnHint
from trl_opsd.privileged.sources.image import ImageView
from trl_opsd.privileged.sources.pseudo_reference import PseudoReference
from trl_opsd.privileged.sources.reflection import Reflection
from trl_opsd.privileged.sources.retrieval import Retrieval
from trl_opsd.privileged.sources.sibling import SiblingSuccess
from trl_opsd.privileged.sources.skills import Skills
from trl_opsd.privileged.sources.written import Written
from trl_opsd.rollouts.view import PrivilegedSource


SOURCES: dict[str, Callable[..., PrivilegedSource]] = {
    "column": DatasetColumn,
    "critic": Critic,
    "empty": Empty,
    "environment": EnvironmentFeedback,
    "exposure": PartialExposure,
    "feedback": VerifierFeedback,
    "fixed": Fixed,
    "image_view": ImageView,
    "other_row": OtherRow,
    "pseudo_reference": PseudoReference,
    "reflection": Reflection,
    "retrieval": Retrieval,
    "shuffled": Shuffled,
    "sibling": SiblingSuccess,
    "skills": Skills,
    "turn_hint": TurnHint,
    "written": Written,
    "wrong_demonstration": WrongDemonstration,
}
CONDITIONS: dict[str, Callable[..., conditions.Condition]] = {
    "above_group_mean": conditions.above_group_mean,
    "consensus": conditions.consensus,
    "failed": conditions.failed,
    "group_failed": conditions.group_failed,
    "group_reward_below": conditions.group_reward_below,
    "most_errors": conditions.most_errors,
    "probability": conditions.probability,
    "reward_below": conditions.reward_below,
    "reward_from": conditions.reward_from,
    "succeeded": conditions.succeeded,
    "truncated": conditions.truncated,
}
LISTS = {"first_of": FirstOf, "all_of": AllOf}
COMPOUND = (*LISTS, "when", "cached", "with_baselines")

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
        where (`str`): What to call it in an error.

    Raises:
        ValueError: If a name is unknown or its arguments do not fit.
    """
    name, arguments = _name_and_arguments(spec, where)
    here = f"{where}.{name}"
    if name in LISTS:
        if not isinstance(arguments, list) or not arguments:
            raise ValueError(f"`{here}` must be a list of sources, got {arguments!r}.")
        return LISTS[name](*(build_source(part, f"{here}[{i}]") for i, part in enumerate(arguments)))
    if name == "when":
        if not isinstance(arguments, dict) or set(arguments) != {"condition", "source"}:
            raise ValueError(f"`{here}` needs a `condition` and a `source`, got {arguments!r}.")
        condition = build_condition(arguments["condition"], f"{here}.condition")
        return When(condition, build_source(arguments["source"], f"{here}.source"))
    if name == "with_baselines":
        if not isinstance(arguments, dict) or "source" not in arguments or set(arguments) - {"source", "alone", "bare"}:
            raise ValueError(f"`{here}` needs a `source`, and takes `alone` and `bare`; got {arguments!r}.")
        source = build_source(arguments["source"], f"{here}.source")
        return WithBaselines(source, *(arguments.get(option, True) for option in ("alone", "bare")))
    if name == "cached":
        return Cached(build_source(arguments, here))
    return _made(name, arguments, SOURCES, here)


def build_condition(spec: Spec, where: str = "condition") -> conditions.Condition:
    """The same for a condition."""
    name, arguments = _name_and_arguments(spec, where)
    return _made(name, arguments, CONDITIONS, f"{where}.{name}")


def outline(spec: Spec) -> str:
    """A description without its texts: the names alone, for places that others read."""
    name, arguments = _name_and_arguments(spec, "privileged_source")
    if name in LISTS:
        return f"{name}({', '.join(outline(part) for part in arguments)})"
    if name == "when":
        return f"when({_name_and_arguments(arguments['condition'], 'condition')[0]}, {outline(arguments['source'])})"
    if name == "with_baselines":
        return f"with_baselines({outline(arguments['source'])})"
    return f"cached({outline(arguments)})" if name == "cached" else name


def _name_and_arguments(spec: Any, where: str) -> tuple[str, Any]:
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, dict) and len(spec) == 1:
        ((name, arguments),) = spec.items()
        return str(name), {} if arguments is None else arguments
    raise ValueError(
        f"`{where}` must be a name, or a mapping with one name as its key, like {{'column': 'solution'}}; got {spec!r}."
    )


def _made(name: str, arguments: Any, known: dict[str, Callable[..., Any]], where: str) -> Any:
    makers = known
    if name not in known:
        if "." not in name:
            names = sorted([*known, *(COMPOUND if known is SOURCES else ())])
            raise ValueError(f"`{where}`: there is no {name!r}. The names are {names}; one with a dot is imported.")
        makers = {name: imported(name, where)}
    maker = makers[name]
    if not callable(maker):
        raise ValueError(f"`{where}`: {name} is {maker!r}, and no function or class.")
    if name not in known and not isinstance(maker, type) and arguments == {}:
        return maker  # a function of the user's own is the source itself
    positional, named = ((), arguments) if isinstance(arguments, dict) else ((arguments,), {})
    if positional and isinstance(maker, type):
        positional, named = (), {_first_option(maker): arguments}
    try:
        inspect.signature(maker).bind(*positional, **named)
    except TypeError as error:
        raise ValueError(f"`{where}`: {error}. It takes {inspect.signature(maker)}.") from None
    try:
        return maker(*positional, **named)
    except (TypeError, ValueError, OSError, re.error) as error:
        raise ValueError(f"`{where}`: {error}") from error


def _first_option(maker: type) -> str:
    """The option that a bare argument is meant for: the first of the class itself, not of its base."""
    own = [name for name in inspect.get_annotations(maker) if not name.startswith("_")]
    return own[0] if own else next(iter(inspect.signature(maker).parameters))
