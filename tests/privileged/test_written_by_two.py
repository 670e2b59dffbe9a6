# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Sources that somebody writes on two gloo processes: what one process gives, equal stores, sums of counts, no hang."""

import json
from pathlib import Path

import pytest

import written_worker
from launch import launch


pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes tells of its runs."""
    folder = tmp_path_factory.mktemp("two")
    launch(Path(written_worker.__file__), str(folder), processes=2, seconds=180)
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", ["skills, two groups", "skills, a group of both", "reflection", "critic"])
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
    assert "OSError from Skills on process 1: no summary today" in other


def test_the_model_writes(both):
    """A process with less to write than the other, or nothing, takes part all the same."""
    for case, name, counts in (
        ("skills of the model", "skills_malformed", [[1, 1, 1, 1], [0, 0, 0, 0]]),
        ("reflection of the model", "reflection_malformed", [[1, 2, 2, 0], [2, 1, 1, 0]]),
    ):
        runs = [told[case] for told in both]
        assert [run["error"] for run in runs] == [None, None]
        assert [[call[1][name] for call in run["calls"]] for run in runs] == counts


@pytest.mark.parametrize(
    "case", ["skills, two groups", "reflection of the model", "critic", "critic of the model, about the first two"]
)
def test_counts_are_summed_in_the_log(both, case):
    left, right = (told[case] for told in both)
    assert [left["error"], right["error"]] == [None, None]
    for logged, *calls in zip(left["logged"], left["calls"], right["calls"], strict=True):
        assert logged == {name: sum(call[1][name] for call in calls) for name in calls[0][1]}
    assert any(value for logged in left["logged"] for value in logged.values())
    if case == "critic of the model, about the first two":
        assert [call[1]["critic_asked"] for call in left["calls"]] == [2] * 4
        assert [call[1]["critic_asked"] for call in right["calls"]] == [0] * 4


FAILING = {
    "critic before skills fails": "no critic today",
    "critic first, then skills, fails": "no critic today",
    "condition fails": "no condition today",
    "endpoint fails": "404 Not Found: no answer",
}


@pytest.mark.parametrize("case", FAILING)
def test_what_fails_on_one_process_ends_both(both, case):
    """Also where the other one would go on to a source that both must ask together."""
    left, right = (told[case]["error"] for told in both)
    assert FAILING[case] in right and "Another process" not in right
    assert FAILING[case] in left and "another process" in left.lower()


def test_what_is_skipped_on_one_process_is_there_on_the_other(both):
    left, right = (told["endpoint fails and is skipped"] for told in both)
    assert [left["error"], right["error"]] == [None, None]
    assert left["skipped"] == [2] * 4
    assert [[bool(row) for row in call[2][:2]] for call in left["calls"]] == [[True, True]] * 4
    assert right["calls"] == [] and left["logged"][0]["critic_asked"] == 2


def test_one_text_of_a_prompt_on_both(both):
    """Each process writes it for itself, and both write the same."""
    left, right = (told["written by the model"] for told in both)
    assert [left["error"], right["error"]] == [None, None]
    for one, other in zip(left["calls"], right["calls"], strict=True):
        assert one[1] == other[1] and one[1]["written_asked"] == 1
        assert one[2][0] == one[2][1] == other[2][2] == other[2][3]
    assert any(call[2][0] for call in left["calls"])
