# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Sources and conditions by their names: the same as in Python, and mistakes that name the option."""

import inspect
import re
from dataclasses import fields, is_dataclass

import pytest

from batches import batch_of
from source_arguments import arguments_of
from trl_opsd import OPSDConfig, View
from trl_opsd import privileged as package
from trl_opsd.privileged import (
    AllOf,
    DatasetColumn,
    FirstOf,
    Fixed,
    SiblingSuccess,
    TextSource,
    When,
    WithBaselines,
    build_condition,
    build_source,
    rollouts_of,
)
from trl_opsd.privileged.compose import Composite
from trl_opsd.privileged.conditions import CONDITIONS
from trl_opsd.privileged.named import SOURCES, outline


VIEW = {"place": "system", "template": "<{privileged_context}>", "weight": 2.0, "name": "v", "role": "user"}


@pytest.mark.parametrize("name", SOURCES)
def test_a_named_source_is_the_one_of_python(name):
    given = arguments_of(name)
    one, other = build_source({name: given} if given else name), SOURCES[name](**given)
    assert type(one) is type(other) is SOURCES[name] and one == other
    assert [getattr(one, option) for option in given] == [getattr(other, option) for option in given]
    if {item.name for item in fields(SOURCES[name])} >= VIEW.keys() and name != "turn_hint":
        with_options = build_source({name: {**given, **VIEW}})
        assert with_options == SOURCES[name](**given, **VIEW) != one, "its views' options count"
        assert {option: getattr(with_options, option) for option in VIEW} == VIEW


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_named_condition_is_the_one_of_python(make_trainer, name):
    """They agree on every rollout of a real batch."""
    given, groups = arguments_of(name), []

    def source(asked):
        groups.extend(asked)
        return [[] for _ in rollouts_of(asked)]

    def right(completions, **kwargs):
        return [float(i % 3 == 0) for i in range(len(completions))]

    trainer = make_trainer(privileged=source, reward_funcs=right, per_device_train_batch_size=8, max_steps=1)
    batch_of(trainer)
    one, other = build_condition({name: given} if given else name), CONDITIONS[name](**given)
    pairs = [(rollout, group) for group in groups for rollout in group]
    answers = [(one(*pair), other(*pair)) for pair in pairs]
    assert len(answers) == 8 and all(left is right for left, right in answers)
    assert {type(left) for left, _ in answers} == {bool}


SHORT = [
    ("column", DatasetColumn()),
    ({"column": "hint"}, DatasetColumn("hint")),
    ({"column": ["a", "b"]}, DatasetColumn(["a", "b"])),
    ({"column": None}, DatasetColumn()),
    ({"sibling": "best"}, SiblingSuccess("best")),
    ({"fixed": "Be brief."}, Fixed("Be brief.")),
    ({"fixed": ["One.", "Two."]}, Fixed(["One.", "Two."])),
    ({"fixed": [{"role": "user", "content": "Q"}]}, Fixed([{"role": "user", "content": "Q"}])),
]


@pytest.mark.parametrize(("spec", "expected"), SHORT, ids=lambda value: str(value)[:40])
def test_a_bare_argument_is_the_first_one(spec, expected):
    assert build_source(spec) == expected


def parts(source):
    """A composed source as nested lists."""
    if isinstance(source, Composite):
        return [type(source), *map(parts, source.parts)]
    return source


def test_composed_sources():
    spec = {
        "first_of": [
            {"when": {"condition": {"reward_from": 0.5}, "source": {"with_baselines": {"source": {"column": "hint"}}}}},
            {"all_of": ["sibling", {"fixed": {"context": "x", "name": "rules"}}]},
            "column",
        ]
    }
    expected = FirstOf(
        When(CONDITIONS["reward_from"](0.5), WithBaselines(DatasetColumn("hint"))),
        AllOf(SiblingSuccess(), Fixed("x", name="rules")),
        DatasetColumn(),
    )
    assert parts(build_source(spec)) == parts(expected)
    assert outline(spec) == "first_of(when(reward_from, with_baselines(column)), all_of(sibling, fixed), column)"


# Of one's own, by dotted path: this module is imported by its name


def hinted(groups):
    return [[View("Think!")] for _ in rollouts_of(groups)]


def hinting(text, twice=False):
    return lambda groups: [[View(text * (1 + twice))] for _ in rollouts_of(groups)]


class Hint(TextSource):
    def __init__(self, text="Think!"):
        super().__init__()
        self.text = text

    def __call__(self, groups):
        return [[self.view(self.text)] for _ in rollouts_of(groups)]


def first(rollout, group):
    return rollout.index == 0


def below(number):
    return lambda rollout, group: rollout.index < number


NO_SOURCE = {"a": "mapping"}
DOTTED = [
    ("test_named.hinted", ["Think!"] * 4),
    ({"test_named.hinting": {"text": "Hm. "}}, ["Hm. "] * 4),
    ({"test_named.hinting": {"text": "Hm. ", "twice": True}}, ["Hm. Hm. "] * 4),
    ({"test_named.hinting": "Hm. "}, ["Hm. "] * 4),
    ("test_named.Hint", ["Think!"] * 4),
    ({"test_named.Hint": {"text": "Hm."}}, ["Hm."] * 4),
    ({"when": {"condition": "test_named.first", "source": "test_named.hinted"}}, ["Think!", None, None, None]),
    ({"when": {"condition": {"test_named.below": 3}, "source": "test_named.Hint"}}, ["Think!"] * 3 + [None]),
]


@pytest.mark.parametrize(("spec", "expected"), DOTTED, ids=lambda value: str(value)[:60])
def test_dotted_paths(make_trainer, spec, expected):
    trainer = make_trainer(privileged_source=spec)
    batch_of(trainer)
    assert [row[0].context if row else None for row in trainer.collected.views] == expected


# Mistakes


MISTAKES = [
    ("sibbling", ["`privileged_source.sibbling`: there is no 'sibbling'", "'sibling'", "'first_of'", "is imported"]),
    (
        {"sibling": {"choise": "best"}},
        ["`privileged_source.sibling`", "'choise'", "did you mean `choice`?", "'exclude_own'"],
    ),
    ({"sibling": {"choice": "tallest"}}, ["`privileged_source.sibling`", "`choice` must be one of", "'tallest'"]),
    ("fixed", ["`privileged_source.fixed`: Fixed needs one of `context` and `file`"]),
    ({"fixed": {"file": "/no/such/file"}}, ["`privileged_source.fixed`", "/no/such/file"]),
    ("turn_hint", ["`privileged_source.turn_hint`", "needs one of `rules`"]),
    ({"turn_hint": {"rules": 3}}, ["`privileged_source.turn_hint`", "`rules` must be a list"]),
    ({"exposure": {"separator": "("}}, ["`privileged_source.exposure`", "unterminated"]),
    ({"skills": {"k": "x"}}, ["`privileged_source.skills`", "`k` must be a whole number of at least 1, got 'x'"]),
    ({"column": {"place": "nowhere"}}, ["`privileged_source.column`", "`place` must be one of", "'nowhere'"]),
    ({"column": {"template": "Hint:"}}, ["`privileged_source.column`", "`template` must contain the placeholder"]),
    ({"column": {"template": 3}}, ["`privileged_source.column`", "`template` must be text, got 3"]),
    ({"column": {"name": ""}}, ["`privileged_source.column`", "`name` is empty"]),
    ({"column": {"weight": 0}}, ["`privileged_source.column`", "`weight` must be a finite number above 0, got 0"]),
    ({"column": {"weight": "1"}}, ["`privileged_source.column`", "`weight` must be a finite number above 0, got '1'"]),
    ({"column": "a", "fixed": "b"}, ["`privileged_source` must be a name, or a mapping with one name"]),
    ({}, ["`privileged_source` must be a name, or a mapping with one name"]),
    ({"first_of": "column"}, ["`privileged_source.first_of` must be a list of sources, got 'column'"]),
    ({"all_of": []}, ["`privileged_source.all_of` must be a list of sources, got []"]),
    ({"first_of": ["column", "fixed"]}, ["`privileged_source.first_of[1].fixed`: Fixed needs one"]),
    ({"when": {"condition": "failed"}}, ["`privileged_source.when` needs a `condition` and a `source`"]),
    ({"when": "failed"}, ["`privileged_source.when` needs a `condition` and a `source`, got 'failed'"]),
    (
        {"when": {"condition": "fail", "source": "column"}},
        ["`privileged_source.when.condition.fail`: there is no 'fail'", "'failed'", "'truncated'"],
    ),
    (
        {"when": {"condition": {"probability": 2}, "source": "column"}},
        ["`privileged_source.when.condition.probability`", "between 0 and 1, got 2"],
    ),
    (
        {"when": {"condition": "probability", "source": "column"}},
        ["`privileged_source.when.condition.probability`: missing a required argument: 'p'. It takes (p: float, seed"],
    ),
    ({"when": {"condition": "failed", "source": 3}}, ["`privileged_source.when.source` must be a name", "got 3"]),
    (
        {"first_of": [{"all_of": [{"fixed": ""}]}]},
        ["`privileged_source.first_of[0].all_of[0].fixed`: Fixed has an empty"],
    ),
    ("with_baselines", ["`privileged_source.with_baselines` needs a `source`"]),
    ("no_such_module.source", ["`privileged_source.no_such_module.source`", "can't be imported", "No module named"]),
    ("test_named.no_such", ["`privileged_source.test_named.no_such`", "can't be imported", "no attribute 'no_such'"]),
    ("..source", ["`privileged_source...source`", "can't be imported"]),
    (".source", ["`privileged_source..source`", "can't be imported"]),
    (
        "test_named.NO_SOURCE",
        ["`privileged_source.test_named.NO_SOURCE`", "{'a': 'mapping'}, and no function or class"],
    ),
    (
        {"test_named.hinting": {"words": "x"}},
        ["`privileged_source.test_named.hinting`", "no option 'words'; it has ['text'"],
    ),
]


@pytest.mark.parametrize(("spec", "named"), MISTAKES, ids=lambda value: str(value)[:60])
def test_mistakes_are_told_when_the_config_is_built(tmp_path, spec, named):
    with pytest.raises(ValueError) as caught:
        OPSDConfig(str(tmp_path), num_generations=1, bf16=False, report_to="none", privileged_source=spec)
    assert all(text in str(caught.value) for text in named), str(caught.value)


# Docstrings


PUBLIC = [thing for thing in vars(package).values() if is_dataclass(thing) and isinstance(thing, type)]


@pytest.mark.parametrize("cls", [*PUBLIC, *(c for c in SOURCES.values() if c not in PUBLIC)], ids=lambda c: c.__name__)
def test_every_field_is_documented(cls):
    """In the class's own docstring, or that of a base."""
    text = "\n".join(inspect.getdoc(base) or "" for base in cls.__mro__ if base is not object)
    heads = re.findall(r"^    ([\w, ]+?)(?: \(.+\))?:(?: |$)", text, flags=re.MULTILINE)
    documented = {name.strip() for head in heads for name in head.split(",")}
    assert {item.name for item in fields(cls) if item.init and item.name != "_"} <= documented
