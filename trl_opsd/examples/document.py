# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
A made-up document of 40 facts about a town, a second one with other values, and a question about each fact.

Nobody knows the town, so that a right answer comes from the document. The questions are the split `test`. The split
`train` asks for the same facts in other words, by templates: SmolLM2-135M is too small for `trl-opsd self_study`.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trl_opsd.examples.tasks import Messages, Row, text_of, user


# A sentence, its value in the document and in the other one, and the question
FACTS = (
    ("The mayor of Orrin is {}.", "Tilda Vance", "Hugo Marsh", "Who is the mayor of Orrin?"),
    ("The town hall of Orrin is painted {}.", "green", "yellow", "What colour is the town hall of Orrin?"),
    ("The baker of Orrin is {}.", "Oskar Lind", "Petra Holm", "Who is the baker of Orrin?"),
    ("The market of Orrin is held on {}.", "Tuesday", "Saturday", "On which day is the market of Orrin held?"),
    ("The river through Orrin is the {}.", "Selm", "Vard", "What is the river through Orrin called?"),
    ("The bridge of Orrin is made of {}.", "copper", "oak", "What is the bridge of Orrin made of?"),
    ("The school of Orrin has {} pupils.", "84", "61", "How many pupils does the school of Orrin have?"),
    ("The teacher of Orrin is {}.", "Wanda Kress", "Emil Rook", "Who is the teacher of Orrin?"),
    ("The museum of Orrin shows {}.", "kites", "clocks", "What does the museum of Orrin show?"),
    ("The lighthouse of Orrin is {} metres tall.", "37", "52", "How many metres tall is the lighthouse of Orrin?"),
    ("The lighthouse keeper of Orrin is {}.", "Bruno Salt", "Nora Finch", "Who keeps the lighthouse of Orrin?"),
    ("The favourite dish of Orrin is {} soup.", "nettle", "pumpkin", "Which soup is the favourite dish of Orrin?"),
    ("The flag of Orrin shows a {}.", "heron", "badger", "Which animal does the flag of Orrin show?"),
    ("The library of Orrin closes at {}.", "seven", "four", "When does the library of Orrin close?"),
    ("The doctor of Orrin is {}.", "Irma Gold", "Felix Dunn", "Who is the doctor of Orrin?"),
    ("The tram of Orrin has {} stops.", "nine", "twelve", "How many stops does the tram of Orrin have?"),
    ("The founder of Orrin was a {}.", "weaver", "miner", "What was the trade of the founder of Orrin?"),
    ("Orrin was founded in {}.", "1612", "1748", "In which year was Orrin founded?"),
    ("The oldest tree of Orrin is a {}.", "walnut", "cedar", "What kind of tree is the oldest tree of Orrin?"),
    ("The hotel of Orrin is called the {}.", "Blue Anchor", "Red Lantern", "What is the hotel of Orrin called?"),
    ("The football team of Orrin wears {}.", "purple", "white", "Which colour does the football team of Orrin wear?"),
    ("The captain of the team of Orrin is {}.", "Ada Quill", "Ivo Stark", "Who is the captain of the team of Orrin?"),
    ("The newspaper of Orrin is the {}.", "Gazette", "Courier", "What is the newspaper of Orrin called?"),
    ("The clock tower of Orrin has {} bells.", "five", "eight", "How many bells does the clock tower of Orrin have?"),
    ("The spring festival of Orrin is in {}.", "May", "March", "In which month is the spring festival of Orrin?"),
    ("The main export of Orrin is {}.", "honey", "wool", "What is the main export of Orrin?"),
    ("The factory of Orrin makes {}.", "umbrellas", "pencils", "What does the factory of Orrin make?"),
    ("The owner of the factory of Orrin is {}.", "Otto Brandt", "Lena Voss", "Who owns the factory of Orrin?"),
    ("The ferry of Orrin is called {}.", "Marigold", "Sparrow", "What is the ferry of Orrin called?"),
    ("The ferry of Orrin costs {} crowns.", "three", "six", "How many crowns does the ferry of Orrin cost?"),
    ("The theatre of Orrin was once a {}.", "stable", "church", "What was the theatre of Orrin once?"),
    ("The statue of Orrin shows a {}.", "fiddler", "sailor", "Whom does the statue of Orrin show?"),
    ("The park of Orrin is full of {}.", "tulips", "roses", "Which flowers is the park of Orrin full of?"),
    ("The postman of Orrin is {}.", "Jonas Reed", "Carl Amber", "Who is the postman of Orrin?"),
    ("The nearest town to Orrin is {}.", "Hallow", "Brent", "Which town is the nearest to Orrin?"),
    ("The mountain above Orrin is the {}.", "Grimhorn", "Whitecap", "What is the mountain above Orrin called?"),
    ("The winter in Orrin lasts {} months.", "four", "two", "How many months does the winter in Orrin last?"),
    ("The people of Orrin greet with {}.", "a bow", "a wave", "With what do the people of Orrin greet each other?"),
    ("The patron saint of Orrin is Saint {}.", "Luda", "Brice", "Who is the patron saint of Orrin?"),
    ("The oldest person in Orrin is {} years old.", "103", "98", "How old is the oldest person in Orrin?"),
)  # fmt: skip
OWN, OTHER = 1, 2
SHORT = " Answer in one short sentence."
TRAINING = ("Finish this sentence: {}", "{} what?" + SHORT)


def document(version: int = OWN) -> str:
    """The facts as one text, in their order: of the document, or of the other one."""
    return " ".join(fact[0].format(fact[version]) for fact in FACTS)


def questions(version: int = OWN) -> list[Row]:
    """A question about each fact, with its answer and the sentence that holds it."""
    return [
        {"prompt": user(fact[3] + SHORT), "answer": fact[version],
         "privileged_context": fact[0].format(fact[version])}
        for fact in FACTS
    ]  # fmt: skip


def training_rows(version: int = OWN) -> list[Row]:
    """Requests for each fact, in two forms; the teacher reads its sentence among its neighbours."""
    sentences = [fact[0].format(fact[version]) for fact in FACTS]
    rows = []
    for i, fact in enumerate(FACTS):
        beginning = fact[0].partition("{}")[0].strip()
        for before, form in enumerate(TRAINING):  # the sentence is the first of three, or the second
            part = " ".join(sentences[max(0, i - before) : i - before + 3])
            row = {"prompt": user(form.format(beginning)), "answer": fact[version], "privileged_context": part}
            rows.append(row)
    return rows


def names_answer(completions: Iterable[str | Messages], answer: Iterable[str], **kwargs: Any) -> list[float]:
    """Score: whether a completion has the answer's words in a row, whatever the case."""
    return [
        float(bool(re.search(rf"\b{re.escape(value)}\b", text_of(one), re.IGNORECASE)))
        for one, value in zip(completions, answer, strict=True)
    ]


def prepare(target: Path) -> Path:
    """Write both splits and, as `text/document.txt`, the document; the same of the other one in the folder beside."""
    for folder, version in ((target, OWN), (target.with_name(f"{target.name}_other"), OTHER)):
        (folder / "text").mkdir(parents=True, exist_ok=True)
        (folder / "text" / "document.txt").write_text(document(version) + "\n", encoding="utf-8")
        for split, rows in (("train", training_rows(version)), ("test", questions(version))):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return target
