# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The base of sources: found by name, hooks that do nothing, user objects wrapped, columns declared."""

import asyncio
import inspect
from dataclasses import dataclass

import pytest
from datasets import Dataset

from source_arguments import arguments_of
from trl_opsd import Rollout, View
from trl_opsd.privileged import (
    AllOf,
    Asker,
    FirstOf,
    Run,
    Source,
    TextSource,
    When,
    as_source,
    call,
    named,
    rollouts_of,
    sources,
    together,
)
from trl_opsd.privileged.named import SOURCES, build_source, find_sources


ONE_FILE = """
from dataclasses import dataclass

from trl_opsd.privileged.base import TextSource


@dataclass
class Proverb(TextSource):
    text: str = "Haste makes waste."

    NAME = "proverb"
    COLUMN_FIELDS = ()

    def __call__(self, groups):
        return [[self.view(self.text)] for group in groups for _ in group]
"""


def with_folder(monkeypatch, folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(folder)])


def test_a_source_is_one_file(monkeypatch, tmp_path):
    """No list names it: a recipe finds it by the name on its class."""
    with_folder(monkeypatch, tmp_path, proverb_of_a_test=ONE_FILE)
    monkeypatch.setattr(named, "SOURCES", find_sources())
    assert set(named.SOURCES) == {*SOURCES, "proverb"}
    source = build_source({"proverb": {"text": "Look first.", "place": "system"}})
    assert call(source, [[None]]) == [[View("Look first.", place="system")]]
    assert build_source({"proverb": "Look first."}).text == "Look first."


def test_a_name_belongs_to_one_source(monkeypatch, tmp_path):
    with_folder(monkeypatch, tmp_path, second_sibling=ONE_FILE.replace('"proverb"', '"sibling"'))
    with pytest.raises(ValueError, match=r"Two sources have the `NAME` 'sibling': .*SiblingSuccess.*Proverb"):
        find_sources()


def test_only_a_name_of_its_own_counts(monkeypatch, tmp_path):
    """A class that takes over the name of its base, as one with a second set of defaults does, is not found by it."""
    text = ONE_FILE.replace('    NAME = "proverb"\n', "").replace(
        "base import TextSource", "sources.fixed import Fixed"
    )
    with_folder(monkeypatch, tmp_path, other_fixed=text.replace("(TextSource)", "(Fixed)"))
    assert find_sources() == SOURCES


def test_every_source_is_found():
    assert list(SOURCES) == [
        "bare", "column", "critic", "empty", "environment", "exposure", "feedback", "fixed", "image_view", "other_row",
        "pseudo_reference", "reflection", "retrieval", "shuffled", "sibling", "skills", "turn_hint", "written",
        "wrong_demonstration",
    ]  # fmt: skip
    assert all(source.NAME == name for name, source in SOURCES.items())


# Columns


@pytest.mark.parametrize("name", SOURCES)
def test_columns_are_declared_once(name):
    """A missing one is an error before training, which names the option where there are several."""
    source_class = SOURCES[name]
    options = {option: f"of_{option}" for option in getattr(source_class, "COLUMN_FIELDS", ())}
    given = {} if name == "column" else arguments_of(name)
    source = source_class(**{**given, **options})
    assert source.columns == list(options.values())
    for option, column in options.items():
        dataset = Dataset.from_dict({one: ["x"] for one in [*options.values(), "prompt"] if one != column})
        with pytest.raises(ValueError, match=f"`train_dataset` has no column `{column}`") as caught:
            source.check(dataset, "train_dataset")
        assert name == "column" or f"the option `{option}`" in str(caught.value)
    source.check(Dataset.from_dict({one: ["x"] for one in [*options.values(), "prompt"]}), "train_dataset")


@pytest.mark.parametrize("name", ["other_row", "retrieval"])
def test_contexts_of_the_training_data_need_no_column_in_others(name):
    SOURCES[name]().check(Dataset.from_dict({"prompt": ["x"]}), "eval_dataset")


def test_options_that_name_no_column():
    assert SOURCES["exposure"](answer="regex:(.*)").columns == ["solution"]
    assert SOURCES["skills"](key=len).columns == SOURCES["critic"]().columns == []
    assert SOURCES["column"](("a", "b")).columns == ["a", "b"]


def test_a_subclass_sets_its_columns():
    @dataclass
    class Own(TextSource):
        def __post_init__(self):
            super().__post_init__()
            self.columns = ["mine"]

    assert Own().columns == ["mine"]


# Users' own


def nothing(groups):
    return [[] for _ in rollouts_of(groups)]


async def later(groups):
    await asyncio.sleep(0)
    return [[View("x")] for _ in rollouts_of(groups)]


class Some:
    """Has some of the hooks, and does not derive from `Source`."""

    uses_model = True

    def __init__(self):
        self.counts, self.seen, self.kept = {"asked": 0}, [], {"n": 1}

    def setup(self, run):
        self.seen.append(run)

    def state_dict(self):
        return self.kept

    def load_state_dict(self, state):
        self.kept = state

    def __call__(self, groups):
        self.counts = {"asked": len(groups)}
        return nothing(groups)


class Silent:
    def __call__(self, groups):
        return []


def test_a_function_is_wrapped_once():
    source = as_source(nothing)
    assert as_source(source) is source and isinstance(source, Source)
    assert source([]) == [] and source.columns == [] and source.counts == {} and not source.uses_model
    assert source.setup(None) is source.check(None, "x") is source.state_dict() is source.load_state_dict({}) is None
    assert call(as_source(later), [[None, None]]) == [[View("x")]] * 2


def test_an_object_with_some_hooks():
    given = Some()
    source = as_source(given)
    source.setup("run")
    source([[], []])
    assert given.seen == ["run"] and source.counts == {"asked": 2}, "counts are those of the latest call"
    assert source.uses_model and source.columns == [] and source.check(None, "x") is None
    source.load_state_dict({"n": 2})
    assert source.state_dict() is given.kept and given.kept == {"n": 2}
    with pytest.raises(ValueError, match="The privileged source Silent must return one list"):
        call(as_source(Silent()), [[None]])


def test_hooks_are_documented():
    hooks = [name for name in vars(Source) if inspect.isfunction(getattr(Source, name))]
    assert all(inspect.getdoc(getattr(Source, name)) for name in hooks)


# Errors on all processes


def run_of(*others):
    """A run of two processes of which the other one sends `others`."""
    return Run(None, None, None, process_index=0, num_processes=2, gather=lambda own: [*own, *others])


def test_an_error_of_another_process():
    with pytest.raises(
        RuntimeError, match=r"Another process failed, so this one stops too\. OSError from X on process 1"
    ):
        with run_of("OSError from X on process 1").raise_on_all_ranks("X"):
            pass
    with pytest.raises(OSError, match="mine") as caught, run_of(None).raise_on_all_ranks("X"):
        raise OSError("mine")
    assert caught.value.__notes__ == ["From X on process 0."]
    with run_of(None).raise_on_all_ranks("X"):
        pass


def test_only_sources_that_use_collectives_wait_for_others():
    source = Source()
    with source.raise_on_all_ranks():  # not even set up
        pass
    source.uses_model = True
    with pytest.raises(ValueError, match="Source was not set up"), source.raise_on_all_ranks():
        pass
    source.setup(run_of("OSError"))
    with pytest.raises(RuntimeError, match="OSError"), source.raise_on_all_ranks():
        pass


def fails_here(groups):
    raise OSError("here")


@pytest.mark.parametrize("make", [FirstOf, AllOf], ids=lambda make: make.__name__)
def test_a_part_that_fails_on_one_process_ends_all(make):
    """Before the next part is asked, which may wait for the other process."""
    part = Some()
    source = make(nothing, part)
    source.setup(run_of("OSError"))
    with pytest.raises(RuntimeError, match="OSError"):
        call(source, [])
    source = make(fails_here, part)
    source.setup(run_of(None))
    with pytest.raises(OSError, match="here") as caught:
        call(source, [])
    assert "From fails_here on process 0." in caught.value.__notes__
    assert part.counts == {"asked": 0}


def test_a_condition_that_fails_on_one_process_ends_all():
    part = Some()
    source = When(lambda *_: True, part)
    source.setup(run_of("OSError"))
    with pytest.raises(RuntimeError, match="OSError"):
        call(source, [])
    assert part.counts == {"asked": 0}


@pytest.mark.parametrize("name", ["critic", "reflection", "skills", "written"])
def test_requests_that_fail_on_one_process_end_all(name):
    """Before the model is let write, here `None`, which no process could call."""
    source = SOURCES[name](author="live")
    with pytest.raises(ValueError, match="was not set up"):
        source.ask([], [])
    source.setup(run_of("OSError"))
    with pytest.raises(RuntimeError, match="OSError"):
        source.ask([], [])
    if name != "skills":  # it first sorts the groups of all processes
        with pytest.raises(RuntimeError, match="OSError"):
            call(source, [])


def test_only_wanted_rollouts_have_views():
    """One that is there to complete its group has none, whatever the source gave it."""
    rows = [
        Rollout({}, "Q", "A", [1], [2], [], {}, 0.0, False, {}, 0, i, 0, False, True, wanted=i < 2) for i in range(3)
    ]
    asker = Asker(lambda groups: [[View(str(one.index))] for one in rollouts_of(groups)], "error", None)
    assert [views[0].context for views in asker([rows])] == ["0", "1"]


def test_together_is_deprecated():
    with pytest.warns(FutureWarning, match="raise_on_all_ranks"):
        assert together(run_of(None), lambda: 3, nothing) == 3
    with pytest.warns(FutureWarning), pytest.raises(RuntimeError, match="OSError"):
        together(run_of("OSError"), lambda: 3, nothing)
