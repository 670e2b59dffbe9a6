# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Kinds and ranges of options: every one of a source, author, method or condition is checked by one validator."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_origin

import numpy as np
import pytest

from source_arguments import arguments_of
from trl_opsd import OPSDConfig
from trl_opsd.losses import DivergenceSpec
from trl_opsd.methods import Method, method_names, method_of
from trl_opsd.options import (
    Count,
    Interval,
    NonNegative,
    OneOf,
    Positive,
    PositiveShare,
    Share,
    check_fields,
    check_option,
    checked,
    kinds_of,
)
from trl_opsd.privileged import EndpointAuthor, ModelAuthor, Rule, TextSource, WithBaselines, build_condition
from trl_opsd.privileged.conditions import CONDITIONS
from trl_opsd.privileged.guided import GuidedRollouts
from trl_opsd.privileged.named import SOURCES


HALF_OPEN = Annotated[float, Interval(least=0, below=1)]
FIT = [
    (int, [0, -3, np.int64(2), 10**400], [True, 2.0, "2", None, math.nan]),
    (float, [0, -1.5, np.float32(2), 3], [True, math.nan, math.inf, "1e-3", None]),
    (bool, [True, False], [0, 1, "no", None, np.bool_(True)]),
    (str, ["", "x"], [3, None, ["x"]]),
    (Count, [1, 7], [0, -1, 1.0, True]),
    (Share, [0, 0.5, 1], [-0.1, 1.1, "0.5"]),
    (PositiveShare, [0.1, 1], [0, 2]),
    (Positive, [1e-9, 3], [0, -1, math.inf]),
    (NonNegative, [0, 3], [-1e-9]),
    (HALF_OPEN, [0, 0.99], [1, -0.1]),
    (Count | None, [1, None], [0, "1"]),
    (Share | Literal["random"], [0.5, "random"], ["randm", 2]),
    (Annotated[str, OneOf(("a", "b"))], ["a", "b"], ["c", "", 1, ["a"]]),
    (list[str], [[], ["a"], ("a",)], ["a", ["a", 1], {"a": 1}, None]),
    (list[dict[str, Any]], [[{"role": "user"}]], [["a"], {"role": "user"}]),
    (dict[str, Any], [{}], [[], "a", None]),
    (str | Callable[[str], str], ["a", str.lower], [3, None]),
    (Any, [None, 3, "x"], []),
]


@pytest.mark.parametrize(("kind", "right", "wrong"), FIT, ids=str)
def test_what_fits(kind, right, wrong):
    for value in right:
        check_option("x", value, kind)
    for value in wrong:
        with pytest.raises(ValueError, match=r"^`x` must be .*, got "):
            check_option("x", value, kind)


WORDS = [
    (0, Count, "`x` must be a whole number of at least 1, got 0."),
    (2, Share, "`x` must be a finite number between 0 and 1, got 2."),
    (0, PositiveShare | None, "`x` must be a finite number above 0 and of at most 1 or None, got 0."),
    ("no", bool, "`x` must be true or false, got 'no'."),
    ("1e-3", float, "`x` must be a finite number, got '1e-3' (YAML takes 1e-3 for a text, and 1.0e-3 for a number)."),
    ("c", Annotated[str, OneOf(("a", "b"))], "`x` must be one of ['a', 'b'], got 'c'."),
    (3, list[str] | str, "`x` must be a list of texts or text, got 3."),
    (3, str | Callable[[str], str] | None, "`x` must be text, a function or None, got 3."),
]


@pytest.mark.parametrize(("value", "kind", "text"), WORDS, ids=str)
def test_the_error_says_what_fits(value, kind, text):
    with pytest.raises(ValueError) as caught:
        check_option("x", value, kind)
    assert str(caught.value) == text


# Whatever holds options is checked


def dataclasses():
    """Every dataclass with options, with arguments that make one."""
    made = {name: (kind, arguments_of(name)) for name, kind in SOURCES.items()}
    endpoint = {"url": "http://localhost/v1", "model": "m"}
    authors = {"endpoint": (EndpointAuthor, endpoint), "model": (ModelAuthor, {"name": "m"})}
    others = {"rule": (Rule, {"hint": "H"}), "guided": (GuidedRollouts, {}), "divergence": (DivergenceSpec, {})}
    return made | authors | others


@pytest.mark.parametrize("name", [name for name in dataclasses() if name != "none"])  # which has no option
def test_every_option_of_a_known_kind_refuses_another(name):
    """An object is of no kind that an option has, but for `Any`; nan and True are no numbers."""
    kind, given = dataclasses()[name]
    kinds, seen = kinds_of(kind), 0
    for item in fields(kind):
        if not item.init or kinds[item.name] is Any:
            continue
        seen += 1
        for value in (object(), *([math.nan, True] if "float" in str(kinds[item.name]) else [])):
            with pytest.raises(ValueError, match=rf"`{item.name}` must be "):
                kind(**{**given, item.name: value})
    assert seen > 0


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_argument_of_a_condition_is_checked(name):
    given = arguments_of(name)
    for option in inspect.signature(CONDITIONS[name]).parameters:
        with pytest.raises(ValueError, match=rf"`condition.{name}`: `{option}` must be "):
            build_condition({name: {**given, option: object()}})


def test_the_baselines_of_a_source_are_switches():
    with pytest.raises(ValueError, match="`alone` must be true or false, got 'no'"):
        WithBaselines(lambda groups: [], alone="no")


OPTIONS = [(name, option) for name in method_names() for option in method_of(name).options]


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids="-".join)
def test_every_option_of_a_method_has_a_kind_and_a_range(name, option):
    method = method_of(name)
    kind = method.option_types[option]
    free = ("cgtr", "margin"), ("edge_opd", "evidence"), ("rltf_sd", "floor")
    assert get_origin(kind) is Annotated or isinstance(kind, OneOf) or (name, option) in free
    for value in (math.nan, "much", True, None, -1e9):
        if (value, kind) != (-1e9, float):
            with pytest.raises(ValueError, match=rf"^`method_options.{option}` must be "):
                OPSDConfig("x", bf16=False, method=name, method_options={option: value}, num_generations=2)


BAD = {
    "taid": {"start": 1.1, "end": -0.1, "rate": -1, "momentum": 2},
    "rlsd": {"steps": 0, "clip": -3, "share": 1.5},
    "reopold": {"mixture": 1.0, "share": 0, "steps": 0.5},
    "tsd_kd": {"least": 2, "candidates": 0, "early": -1},
    "unisd": {"agreement": "tokn", "gamma": -1},
    "eopd": {"topk": 2.5, "clip": -0.1},
    "cgtr": {"every": 0, "tail": 0, "truncated": 2},
    "purified": {"bound": 0, "temperature": 0},
    "pw_opsd": {"softness": 0, "least": 2},
    "rlcsd": {"tau": 0, "delta": -1},
    "beta_opsd": {"share": 7},
    "antisd": {"warmup": 2.5, "drop": 2},
    "dasd": {"share": 2, "repel": -1},
    "gates": {"bound": 0},
    "sipo": {"bound": -1},
}


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in BAD for option in BAD[name]], ids="-".join)
def test_a_value_outside_the_range_of_a_method(name, option):
    value = BAD[name][option]
    with pytest.raises(ValueError, match=rf"^`method_options.{option}` must be .*, got {value!r}"):
        OPSDConfig("x", bf16=False, method=name, method_options={option: value}, num_generations=2)


def test_a_method_of_ones_own():
    """An option without a kind takes what is like its default; one that does not fit its kind is a mistake at once."""
    own = {"title": "T", "paper": "P", "label": "paper"}
    method = Method(**own, options={"a": 1, "b": "x", "c": None, "d": True})
    assert [method.type_of(option) for option in "abcd"] == [float, str, Any, bool]
    with pytest.raises(ValueError, match=r"`options.a` must be a finite number between 0 and 1, got 2"):
        Method(**own, options={"a": 2}, option_types={"a": Share})
    with pytest.raises(ValueError, match=r"`option_types` names \['b'\]"):
        Method(**own, options={"a": 1}, option_types={"b": Share})


def test_a_source_of_ones_own_is_checked_too():
    """Annotations that can't be evaluated, or are of no known kind, are left alone; and so is a default."""

    @dataclass
    class Own(TextSource):
        least: Count = 1
        other: "Unknown" = 3  # noqa: F821
        loose: int = None

    assert Own(other="x").loose is None
    with pytest.raises(ValueError, match="`least` must be a whole number of at least 1, got 0"):
        Own(least=0)
    with pytest.raises(ValueError, match="`weight` must be a finite number above 0, got True"):
        Own(weight=True)


def test_a_decorated_function_checks_its_arguments():
    @checked
    def made(share: Share, *, name: str | None = None, **others: int) -> tuple:
        return share, name, others

    assert made(0.5, name="x", one=1) == (0.5, "x", {"one": 1})
    with pytest.raises(ValueError, match="`share` must be"):
        made(3)


def test_a_text_that_may_be_a_key_is_not_shown():
    @dataclass
    class Options:
        retries: Count = 1

    with pytest.raises(ValueError) as caught:
        check_fields(Options("sk-secret"), shows_text=False)
    assert str(caught.value) == "`retries` must be a whole number of at least 1, got a str."
