# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Spellings of one text are equal, texts of two meanings are not, and a part is found in whatever spelling."""

import itertools
import random
import time
import unicodedata

import pytest

from trl_opsd.rollouts.rollout import reaches
from trl_opsd.rollouts.text import normalised, occurrences, words


SAME = [
    ["What is 17 + 25?", "What is 17 + 25? ", "what is 17+25 ?", "**What** is $17 + 25$", "WHAT IS\n１７＋２５？"],
    ["1000", "1,000", "1{,}000", r"1\,000", "1'000", "1_000", "1 000", "1\u202f000", "1000.", "1,000.00", "$1{,}000$"],
    ["1234567.5", "1,234,567.50", "12,34,567.5", "1.234.567,5"],
    ["0.5", ".5", "0.50", "०.५"],
    ["-3", "−3", "- 3", r"\boxed{-3}", "$-3$."],
    ["5", "+5", r"\boxed{5}", r"\(5\)", "**5**", "`5`", r"\text{5}", r"\boxed{\textbf{5}}"],
    ["1/2", r"\frac{1}{2}", r"\frac12", r"\dfrac 1{2}", "½", "1 / 2"],
    ["(x+1)/2", r"\frac{x+1}{2}", r"\frac{x + 1}2", "(x + 1) / (2)".replace("(2)", "2")],
    ["x^2", "x^{2}", "x²", "X ^ 2"],
    ["x_1", "x_{1}", "x₁"],
    ["3 * 4", "3 × 4", r"3 \times 4", r"3\cdot4"],
    ["a <= b", "a ≤ b", r"a \leq b", r"$a\le b$"],
    ["90°", r"90^\circ", r"90^{\circ}"],
    ["50%", r"50\%", "50 %"],
    ["Paris", "paris.", "“PARIS”", "*Paris*", "<b>Paris</b>", "__Paris__", "- Paris", "# Paris"],
    ["straße", "STRASSE"],
    ["le café", unicodedata.normalize("NFD", "Le Café")],
    ["हिन्दी भाषा", unicodedata.normalize("NFD", "हिन्दी भाषा"), "हिन्दी\u200d भाषा"],
    ["漢字 問題", "漢字問題", "「漢字」問題。"],
    ["forty-two apples", "Forty two apples", "forty‑two apples"],
    ["it's so", "it’s so"],
    ["(1, 2)", "(1,2)", r"\left(1, 2\right)"],
    ["{1, 2}", r"\{1,2\}"],
    ["?!", " ? !"],
]
DIFFERENT = [
    "3.5", "35", "3,5", "3 4 5", "345", "-1", "1", "1 - 1", "x^2", "x_2", "x2", "2x", "17 + 25", "17 - 25", "17 * 25",
    "1/2", "12", "5", "5!", "0.5", "0.05", "50%", "f(x)", "f'(x)", "[1, 2)", "(1, 2]", "x^(a+b)", "x^a + b", "x > 5",
    "x < 5", "x ≥ 5", "C", "C#", "C++", "", "?", "🙂", "😡", "हिन्दी", "हन्दी", "café", "cafe", "√2", "2", "$a$",
    r"\alpha", "1.2.3", "1.23", "1000",
]  # fmt: skip


@pytest.mark.parametrize("spellings", SAME, ids=lambda spellings: spellings[0])
def test_spellings_of_one_text(spellings):
    assert {normalised(one) for one in spellings} == {normalised(spellings[0])}
    assert normalised(normalised(spellings[0])) == normalised(spellings[0])


def test_texts_of_two_meanings():
    forms = [normalised(one) for one in DIFFERENT]
    assert len(set(forms)) == len(forms), sorted(forms)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("It's NOT so, 3.5 % of x_1!", ["it", "s", "not", "so", "3.5", "of", "x_1"]),
        ("Straße ΛΌΓΟΣ", ["strasse", "λόγοσ"]),
        ("答案是42。The 答案", ["答", "案", "是", "42", "the", "答", "案"]),
        ("カタ ひら", ["カ", "タ", "ひ", "ら"]),
        ("ที่", ["ที่"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("हिन्दी भाषा बहुत सुन्दर है", ["हिन्दी", "भाषा", "बहुत", "सुन्दर", "है"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
        ("مُحَمَّد", ["مُحَمَّد"]),
        ("_hello_ **big** `world`", ["hello", "big", "world"]),
        ("1,000 of 2_000", ["1000", "of", "2000"]),
        ("a\x00b\u200fג", ["a", "b", "ג"]),
        ("?! 🙂", []),
        ("", []),
    ],
)
def test_words(text, parts):
    assert words(text) == parts


@pytest.mark.parametrize(
    ("text", "part", "found"),
    [
        ("So we get 1000.", "1,000", ["1000"]),
        ("So we get 1,000 or 10,000.", "1000", ["1,000"]),
        ("x = 5 follows, y=5", "x=5", ["x = 5"]),
        (r"We get \frac{1}{2}.", r"\frac12", [r"\frac{1}{2}"]),
        (r"We get $\frac12$ or ½.", "1/2", [r"\frac12", "½"]),
        ("It is 0.50 dollars.", "0.5", ["0.50"]),
        ("It is -3, 2-3 = -1, 3 - 3 and = - 3.", "-3", ["-3", "- 3"]),
        ("It is -3, 3 less, and 5 - 3.", "3", ["3", "3"]),
        ("15 and 2.5 make 5, or 5.0.", "5", ["5", "5.0"]),
        ("A coin, a bus and (A).", "A", ["A", "A"]),
        ("Le prix était élevé", "é", []),
        ("YES or no. Yes", "yes", ["YES", "Yes"]),
        ("结果等于五个。", "五", ["五"]),
        ("un cafe\u0301 noir", "café", ["cafe\u0301"]),
        (r"so \boxed{x+1}, x + 1", "x+1", ["x+1", "x + 1"]),
        ("what?! so", "?!", ["?!"]),
        ("nothing", "", []),
    ],
)
def test_occurrences(text, part, found):
    assert [text[start:end] for start, end in occurrences(text, part)] == found


@pytest.mark.parametrize(
    "text", ["{" * 5000, r"\frac" * 5000, r"\boxed{" * 5000, "-" * 5000, "*" * 5000, "_" * 5000, "x'" * 5000]
)
def test_degenerate_texts_take_no_time(text):
    begin = time.process_time()
    normalised(text)
    words(text)
    occurrences(text, "5")
    assert time.process_time() - begin < 1


def test_what_is_found_has_the_normal_form_of_the_part():
    draw = random.Random(0)
    alphabet = ["1", "2", ",", ".", ",000", " ", " ", "+", "=", "ab", "B", "é", "e\u0301", "漢"]
    count = 0
    for _ in range(2000):
        text, part = ("".join(draw.choices(alphabet, k=k)) for k in (30, 2))
        places = occurrences(text, part)
        assert all(a < b <= c < d for (a, b), (c, d) in itertools.pairwise(places))
        if words(part):
            assert all(words(text[start:end]) == words(part) for start, end in places), (text, part)
            count += len(places)
    assert count > 500


# Thresholds


@pytest.mark.parametrize(
    ("value", "threshold", "reached"),
    [
        (0.9999999776482582, 1.0, True),  # float32 weights 0.9 and 0.1
        (0.699999988079071, 0.7, True),
        (7, 0.28 * 25, True),
        (6, 0.28 * 25, False),
        (0.9999, 1.0, False),
        (1.0, 1.0, True),
        (-0.5, -0.5, True),
        (-1e-9, 0.0, True),
        (float("nan"), 0.0, False),
        (float("inf"), float("inf"), True),
        (1e9, float("inf"), False),
    ],
)
def test_reaches(value, threshold, reached):
    assert reaches(value, threshold) == reached
