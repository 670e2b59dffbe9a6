# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Reflection and skills on two gloo processes: what one process gives, equal stores, and no hang."""

import json
from pathlib import Path

import pytest

import written_worker
from launch import launch


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes tells of its runs."""
    folder = tmp_path_factory.mktemp("two")
    launch(Path(written_worker.__file__), str(folder), processes=2, seconds=180)
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", ["skills, two groups", "skills, a group of both", "reflection"])
def test_two_processes_are_as_one(tmp_path, both, case):
    one = written_worker.run(tmp_path, case, processes=1)
    left, right = (told[case] for told in both)
    assert [run["error"] for run in (one, left, right)] == [None] * 3
    assert len(one["calls"]) == 4
    for whole, *parts in zip(one["calls"], left["calls"], right["calls"], strict=True):
        assert whole[0] == parts[0][0] == parts[1][0], "equal stores"
        assert {name: sum(part[1][name] for part in parts) for name in whole[1]} == whole[1]
        views = [row for part in parts for row in part[2]]
        if case != "skills, two groups":  # each sees the whole group and is asked for its own half
            views = parts[0][2][:2] + parts[1][2][2:]
        assert views == whole[2]
    assert sum(len(row) for call in one["calls"] for row in call[2]) >= 9


def test_the_solution_of_another_process(both):
    """The successes are, step by step, the second, the third and the fourth rollout, then none."""
    calls = zip(*(told["reflection"]["calls"] for told in both), strict=True)
    contexts = [[row[0]["context"] if row else None for row in left[2][:2] + right[2][2:]] for left, right in calls]
    for step, success in enumerate([1, 2, 3]):
        solution = f"Correct solution:\nIt is {success}\n\nReflection: It was number "
        expected = [None if number == success else f"{solution}{number}." for number in range(4)]
        assert contexts[step] == expected
    assert contexts[3] == [None] * 4


def test_one_fails_and_both_say_so(both):
    raised, other = sorted(told["skills, one fails"]["error"] for told in both)
    assert raised == "OSError: no summary today"
    assert "Skills failed on another process: OSError: no summary today" in other


def test_the_model_writes(both):
    """A process with less to write than the other, or nothing, takes part all the same."""
    for case, name, counts in (
        ("skills of the model", "skills_malformed", [[1, 1, 1, 1], [0, 0, 0, 0]]),
        ("reflection of the model", "reflection_malformed", [[1, 2, 2, 0], [2, 1, 1, 0]]),
    ):
        runs = [told[case] for told in both]
        assert [run["error"] for run in runs] == [None, None]
        assert [[call[1][name] for call in run["calls"]] for run in runs] == counts
