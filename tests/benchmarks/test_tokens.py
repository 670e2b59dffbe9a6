# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The token study: its score, its reward and its table."""

import pytest

from benchmarks import tokens


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("A star is a ball of gas.", 1.0),
        ("It is.", 0.5),
        ("One sentence here. And another.", 0.5),
        (" ".join(["word"] * 24) + ".", 0.25),
    ],
)
def test_short_answers(text, reward):
    assert tokens.is_short(text) == (reward == 1.0)
    assert tokens.short_answer([text]) == [reward]


def test_table():
    points = [{"step": 0, "tokens": 0, "score": 0.1}, {"step": 4, "tokens": 1234, "score": 0.62}]
    run = {"method": "GRPO", "seed": 2, "target": 0.6, "teacher": 0.9, "points": points}
    assert tokens.runs_table([run]).splitlines()[-1] == "| GRPO | 2 | 90% | 10% | 62% | 4 | 1,234 | yes |"
