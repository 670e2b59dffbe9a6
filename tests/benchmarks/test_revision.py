# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The study of self-revision: its task, what counts as right, its table and one round of it."""

import math

import pytest

from benchmarks import revision
from trl_opsd.phases.collect import collect


def test_the_task():
    held_out, own, seen = revision.pairs()
    assert len({*held_out, *own, *seen}) == 10_000 and len(held_out) == 500
    assert (revision.question(7, 35), revision.answer(7, 35)) == ("07+35=", "240")
    words = revision.tokenizer()
    text = f"07+35=140{revision.BLANK}{revision.WRONG}{revision.BLANK}240<end>"
    assert words.decode(words(text)["input_ids"]) == text and 0 not in words(text)["input_ids"]


@pytest.mark.parametrize(
    ("text", "right"), [("240", 1.0), ("241", 0.0), ("140\n\nn\n\n240", 1.0), ("240\n\ny\n\n140", 0.0), ("", 0.0)]
)
def test_the_last_part_counts(text, right):
    assert revision.is_right([text], ["240"]) == [right]


def test_what_a_model_says_is_measured(monkeypatch):
    """The first attempt and the last part of one text."""
    model, words = revision.new_model(0), revision.tokenizer()
    ids = words("07+35=140\n\nn\n\n240<end>", return_tensors="pt")["input_ids"]
    monkeypatch.setattr(model, "generate", lambda *_, **__: ids)
    assert revision.evaluated(model, [(7, 35)]) == {"right": 1.0, "first": 0.0, "length": 11}


def test_one_round(tmp_path):
    """Samples of a random model, a fine-tuning on them and a distillation, each of one step."""
    study = revision.Study(revision.new_model(1), 0, tmp_path, steps=1, rate=1e-3)
    found = collect(study.trainer(study.model(), 24), 16, layouts=["answer"])
    assert len(found.rows["answer"]) == 64
    tuned = study.tuned(found, ["answer"])
    made = study.distilled(tuned, 24)
    for before, after in ((study.weights, tuned), (tuned, made)):
        assert any(not before[name].equal(after[name]) for name in before)
    assert all(math.isfinite(value) for value in revision.evaluated(study.model(made), study.held_out[:8]).values())


def test_the_table():
    lines = [{"name": "SRT", "right": right, "first": 0.5, "length": 4} for right in (0.25, 0.75)]
    assert revision.results_table(lines).splitlines()[-1] == "| SRT | 50.0% (25.0% to 75.0%) | 50.0% | 4.0 |"
