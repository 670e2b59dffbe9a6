# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Numbers of the overview and self-checks, by hand on records of a few tokens."""

import math

import pytest

from token_records import STOP, Vocabulary, head, json_task, rollout, view
from trl_opsd.token_report.checks import check_record
from trl_opsd.token_report.summary import gap_bins, summarize


@pytest.fixture
def vocabulary():
    return Vocabulary()


@pytest.fixture
def summary(vocabulary):
    lines = [json_task(vocabulary, success=True, leak="quote: x"), json_task(vocabulary, index=1, success=False)]
    return summarize(lines, head(vocabulary))


def test_counts_and_shares(summary):
    assert (summary.rollouts, summary.tokens) == (2, 8)
    assert summary.taught == pytest.approx(6 / 8) and summary.clipped == pytest.approx(2 / 6)
    assert summary.leaked == 0.5 and summary.success == 0.5
    assert summary.divergence == pytest.approx(21 / 3) and summary.gap == pytest.approx((-12 + 0.5 + 1.375) / 3)
    assert summary.first == pytest.approx(20 / 21) and not summary.estimated


def test_positions_and_quarters(summary):
    assert [(part.label, round(part.cost * 21, 6), part.tokens) for part in summary.positions] == [
        ("1", 20, 1 / 3), ("2–3", 0.25, 1 / 3), ("4–7", 0.75, 1 / 3),
    ]  # fmt: skip
    assert [part.mean for part in summary.positions] == [20, 0.25, 0.75]
    assert [(part.label, part.mean) for part in summary.quarters] == [
        ("first quarter", 20), ("second quarter", 0.25), ("third quarter", 0), ("last quarter", 0.75),
    ]  # fmt: skip


def test_tokens_that_cost_most_and_what_the_teacher_would_rather_write(summary):
    assert [(row.text, row.count, row.divergence) for row in summary.costly] == [
        ("The", 2, 40), (STOP, 2, 1.5), (" moon", 2, 0.5),
    ]  # fmt: skip
    assert [(row.student, row.teacher, row.count, row.gap) for row in summary.rather] == [
        ("The", '{"', 2, -12), (" moon", "sun", 2, 0.5),
    ], "not the stop token, which the teacher finds likeliest itself"  # fmt: skip
    assert summary.rather[0].cost == pytest.approx(20 / 21)


def test_what_the_teacher_wants_most_over_all_tokens_of_the_student(vocabulary):
    wants = [[("{", -9.0, -0.1)], [("{", -9.0, -0.1)], [("}", -9.0, -0.1)]]
    taught = view(vocabulary, [-9.0] * 3, [2.0, 3.0, 4.0], top=wants)
    found = summarize([rollout(vocabulary, ["A", "B", "C"], [-1.0] * 3, {"v": taught})], head(vocabulary))
    assert found.rather[0].teacher == "}", "the dearest pair"
    wanted = found.wanted
    assert (wanted.teacher, wanted.students, wanted.count) == ("{", ["B", "A"], 2)
    assert wanted.cost == pytest.approx(5 / 9)


def test_ten_rows_at_most_the_dearest_first(vocabulary):
    texts = [f"t{i}" for i in range(14)]
    divergence = [float(i) for i in range(14)]
    taught = view(vocabulary, [-1.0] * 14, divergence, top=[[("x", -3.0, -0.1)]] * 14)
    found = summarize([rollout(vocabulary, texts, [-1.0] * 14, {"a": taught})], head(vocabulary))
    assert [row.text for row in found.costly] == [f"t{i}" for i in range(13, 3, -1)]
    assert [row.student for row in found.rather] == [f"t{i}" for i in range(13, 3, -1)]


@pytest.mark.parametrize(
    ("gap", "low", "high"),
    [(0, -0.25, 0.25), (0.25, 0.25, 1), (-0.25, -1, -0.25), (1, 1, 2), (-3, -4, -2), (8, 8, None), (-20, None, -8)],
)
def test_histogram_of_gaps(vocabulary, gap, low, high):
    taught = view(vocabulary, [-20.0 + gap], [1.0])
    found = summarize([rollout(vocabulary, ["x"], [-20.0], {"a": taught})], head(vocabulary)).gaps
    assert sum(found) == 1 and gap_bins()[found.index(1)] == (low, high)


def test_stop_tokens(summary, vocabulary):
    stops = summary.stops
    assert stops.texts == [STOP] and (stops.ends, stops.others) == (2, 4)
    assert stops.student_end == pytest.approx(math.exp(-1.5)) and stops.teacher_end == pytest.approx(math.exp(-0.125))
    assert stops.student_before == stops.teacher_before == 0
    cut = json_task(vocabulary) | {"texts": ["The", " moon", " result", "."]}
    cut["ids"] = [vocabulary(text) for text in cut["texts"]]
    wanted = summarize([cut], head(vocabulary)).stops
    assert wanted.texts == [STOP] and wanted.ends == 0, "none ends on it, and the teacher finds it likeliest"
    assert wanted.others == 3 and wanted.teacher_before == pytest.approx(math.exp(-0.125) / 3)
    plain = rollout(vocabulary, ["a"], [-1.0], {"v": view(vocabulary, [-1.0], [0.0])})
    assert summarize([plain], head(vocabulary)).stops is None
    both = summarize([cut, json_task(vocabulary)], head(vocabulary)).stops
    assert both.ends == 1 and both.others == 5
    assert both.teacher_before == pytest.approx(math.exp(-0.125) / 5), "the teacher would have stopped at the cut"


def test_several_views_count_by_their_shares(vocabulary):
    hint = view(vocabulary, [None, -3.0], [None, 4.0], share=[0, 0.25], top=[None, [("z", -2.0, -0.1)]], start=1)
    whole = view(vocabulary, [-1.0, -1.0], [1.0, 2.0], share=[1, 0.75], top=[[("a", -2.0, -1.0)], [("y", -1.0, -0.5)]])
    line = rollout(vocabulary, ["a", "b"], [-2.0, -2.0], {"whole": whole, "hint": hint})
    found = summarize([line], head(vocabulary))
    assert found.divergence == pytest.approx((1 + 0.75 * 2 + 0.25 * 4) / 2) and found.taught == 1
    assert found.gap == pytest.approx((1 + 0.75 * 1 - 0.25 * 1) / 2)
    assert {(row.student, row.teacher): row.cost for row in found.rather} == {
        ("b", "y"): pytest.approx(1.5 / 3.5), ("b", "z"): pytest.approx(1 / 3.5),
    }  # fmt: skip


def test_estimates_count_by_their_size(vocabulary):
    taught = view(vocabulary, [-1.0, -3.0], [-1.0, 1.0])
    line = rollout(vocabulary, ["a", "b"], [-2.0, -2.0], {"a": taught}, advantage=[1.0, -1.0])
    found = summarize([line], head(vocabulary))
    assert found.estimated and found.divergence == 0 and found.first == 0.5
    assert [row.cost for row in found.costly] == [0.5, 0.5]


def test_nothing_is_taught(vocabulary):
    found = summarize([rollout(vocabulary, ["a"], [None], {})], head(vocabulary))
    assert (
        found.taught == found.first == found.divergence == 0 and found.costly == found.rather == found.positions == []
    )
    assert summarize([], head(Vocabulary())).rollouts == 0


def results(lines, same_weights=True):
    return [check.passed for check in check_record(lines, same_weights)]


def test_checks_of_a_sound_record(vocabulary):
    line = json_task(vocabulary)
    assert results([line]) == [True, None, True, True]
    bare = view(vocabulary, [-2.0, -1.0], [0, 0.004], prompt={"ids": [7, 9], "text": "Q. A.", "context": []})
    same = rollout(vocabulary, ["a", "b"], [-2.0, -1.0], {"a": bare})
    assert results([line, same]) == [True, True, True, True]


def test_checks_find_what_they_are_for(vocabulary):
    negative = view(vocabulary, [-1.0, -2.0], [0.5, -0.5])
    (found, *_) = check_record([rollout(vocabulary, ["a", "b"], [-1.0, -1.0], {"v": negative}, index=4)], True)
    assert found.passed is False and found.detail == "rollout 5, view v, token 2: -0.5 nats."
    teaches = view(vocabulary, [-1.0, -2.0], [0.5, 0.5], prompt={"ids": [7, 9], "text": "Q. A.", "context": []})
    line = rollout(vocabulary, ["a", "b"], [-1.0, -1.0], {"v": teaches})
    assert results([line]) == [True, False, True, True] and results([line], same_weights=False)[1] is None
    constant = view(vocabulary, [-math.log(49152)] * 2, [3.0, 3.0])
    checks = check_record([rollout(vocabulary, ["a", "b"], [-1.0, -1.0], {"v": constant})], True)
    assert checks[2].passed is False and "1 in 49,152" in checks[2].detail
    short = json_task(vocabulary)
    short["views"]["privileged"]["q"].pop()
    assert results([short])[3] is False
    hint = view(vocabulary, [None, -2.0], [None, 0.5], start=1)
    line = rollout(vocabulary, ["a", "b"], [-1.0, -1.0], {"v": hint})
    assert results([line])[3] is False, "its teacher's prompt lacks the first token"
    hint["prompt"]["ids"] = [7, line["ids"][0], 8, 9]
    assert results([line])[3] is True


def test_an_estimate_may_be_negative(vocabulary):
    estimate = view(vocabulary, [-1.0, -2.0], [0.5, -0.5])
    line = rollout(vocabulary, ["a", "b"], [-1.0, -1.0], {"v": estimate}, advantage=[1.0, 0.5])
    assert results([line])[0] is None
