# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Sources that read the data set: columns, fixed texts, parts of solutions, other rows; on real batches."""

import math
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, IterableDataset

import tiny
from agents import agent_tokenizer_with_schema
from batches import batch_of
from scripted import sums
from trl_opsd.privileged import (
    Critic,
    DatasetColumn,
    Fixed,
    OtherRow,
    PartialExposure,
    Retrieval,
    Shuffled,
    Skills,
    Written,
    WrongDemonstration,
)
from views import SUM_ROWS, contexts_of, views_and_reads


CHAT = [{"role": "user", "content": "3 + 3?"}, {"role": "assistant", "content": "6"}]


# Columns and fixed texts


def test_several_columns_are_several_views(make_trainer):
    dataset = sums(worked=["one and one", None], shown=[CHAT, None], short=["2", "5"])
    views, reads, _ = views_and_reads(
        make_trainer, DatasetColumn(["worked", "shown", "short"]), dataset, num_generations=2
    )
    assert [[view.name for view in row] for row in views] == [["worked", "shown", "short"]] * 2 + [["short"]] * 2
    assert "one and one" in reads["worked"][0] and "3 + 3?" not in reads["worked"][0]
    assert "3 + 3?<|im_end|>\n<|im_start|>assistant\n6<|im_end|>" in reads["shown"][1]
    assert "one" not in reads["short"][0] and "5" in reads["short"][3]


def test_one_missing_of_several_columns_is_named(make_trainer):
    with pytest.raises(ValueError, match=r"`train_dataset` has no column `hint`.*'worked'"):
        make_trainer(dataset=sums(worked=["a", "b"]), privileged=DatasetColumn(["worked", "hint"]))


def test_a_streamed_row_without_the_column_is_named(make_trainer):
    stream = Dataset.from_list(SUM_ROWS).to_iterable_dataset()
    stream = stream.map(lambda row: row)  # hides the columns
    assert stream.column_names is None
    trainer = make_trainer(dataset=stream, privileged=DatasetColumn("worked"))
    with pytest.raises(ValueError, match="A training row has no column `worked`"):
        trainer.train()


def test_a_fixed_rule_is_the_same_for_all(make_trainer):
    _, reads, _ = views_and_reads(make_trainer, Fixed("Answer in French."))
    assert all("<|im_start|>system\nAnswer in French." in text for text in reads["privileged"])


def test_one_of_several_fixed_texts(make_trainer, tmp_path):
    rules = ["Be brief.", "Be kind.", "Be exact."]
    options = {"per_device_train_batch_size": 64, "dataset": Dataset.from_list(SUM_ROWS * 16)}
    drawn = [row[0].context for row in views_and_reads(make_trainer, Fixed(rules), **options)[0]]
    assert set(drawn) == set(rules) and max(Counter(drawn).values()) < 40
    assert drawn == [row[0].context for row in views_and_reads(make_trainer, Fixed(rules), **options)[0]]
    assert drawn != [row[0].context for row in views_and_reads(make_trainer, Fixed(rules, seed=1), **options)[0]]


def test_a_fixed_text_from_a_file(make_trainer, tmp_path):
    (tmp_path / "rules.txt").write_text("Say 42 — always.\n", encoding="utf-8")
    _, reads, _ = views_and_reads(make_trainer, Fixed(file=str(tmp_path / "rules.txt"), place="after_user"))
    assert all(text.count("Say 42 — always.") == 1 for text in reads["privileged"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "one of `context` and `file`"),
        ({"context": "a", "file": "b"}, "one of `context` and `file`"),
        ({"context": []}, "empty context"),
        ({"context": ["rule", " "]}, "Context 1 of Fixed"),
    ],
)
def test_bad_fixed_texts(options, text):
    with pytest.raises(ValueError, match=text):
        Fixed(**options)


# Parts of a solution

STEPS = "One.\n\nTwo.\n \nThree.\n\nThe answer is 2."


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, STEPS),
        ({"share": 0.5}, "One.\n\nTwo."),
        ({"share": 0.74}, "One.\n\nTwo."),
        ({"share": 0.75}, "One.\n\nTwo.\n \nThree."),
        ({"share": 0.0}, None),
        ({"share": 0.0, "answer": "answer"}, "Answer: 2"),
        ({"share": 0.25, "answer": r"regex:answer is (\d+)"}, "One.\n\nAnswer: 2"),
        ({"share": 1.0, "answer": "answer"}, STEPS),
        ({"answer": "answer", "hide_answer": True}, "One.\n\nTwo.\n \nThree.\n\nThe answer is ...."),
        ({"share": 0.5, "answer": "answer", "hide_answer": True}, "One.\n\nTwo."),
        ({"separator": r"\.\s*", "share": 0.5}, "One.\n\nTwo"),
    ],
)
def test_exposure(make_trainer, options, wanted):
    found = contexts_of(make_trainer, PartialExposure(**options), ["2", "2"], dataset=sums(solution=[STEPS, None]))
    assert found == [wanted] * 2


@pytest.mark.parametrize(
    ("solution", "answer", "hidden", "shown"),
    [
        ("15 and 2.5 make 5, or 5.0.", "5", "15 and 2.5 make ..., or ....", None),
        ("Of 25 all but 15.", "5", None, "Of 25 all but 15.\n\nAnswer: 5"),
        ("A and B: AB. Take A", "A", "... and B: AB. Take ...", None),
        ("It is -3, 3 less.", "-3", "It is ..., 3 less.", None),
        ("It makes 42, not 4.2.", 42.0, "It makes ..., not 4.2.", None),
        (r"so \boxed{5}, 5", r"\boxed{5}", r"so \boxed{...}, ...", None),
        ("So we get 1000.", "1,000", "So we get ....", None),
        ("So we get 1,000.", 1000, "So we get ....", None),
        ("x = 5 follows", "x=5", "... follows", None),
        (r"We get $\frac{1}{2}$.", r"\frac12", "We get $...$.", None),
        ("It is 0.50 dollars.", 0.5, "It is ... dollars.", None),
        ("It is -3, as 2-3 is no answer.", -3, "It is ..., as 2-3 is no answer.", None),
        ("Paris, PARIS, paris", "Paris", "..., ..., ...", None),
        ("Le prix e\u0301tait élevé", "était", "Le prix ... élevé", None),
        ("Le prix était élevé", "é", None, "Le prix était élevé\n\nAnswer: é"),
        ("结果等于五个。", "五", "结果等于...个。", None),
    ],
)
def test_an_answer_stands_for_itself(make_trainer, solution, answer, hidden, shown):
    """It is neither hidden within longer numbers and words, nor taken for shown there."""
    dataset = Dataset.from_list([{**row, "solution": solution, "answer": answer} for row in SUM_ROWS[:1] * 4])
    for hide, wanted in ((True, hidden), (False, shown)):
        views, *_ = views_and_reads(make_trainer, PartialExposure(answer="answer", hide_answer=hide), dataset=dataset)
        assert views[0][0].context == (wanted or solution)


def test_an_answer_is_shown_after_a_part_that_holds_it_by_chance(make_trainer):
    solution = "There are 5 boxes with 12 pens.\n\nSo 5 it is"
    for share, wanted in ((0.5, "There are 5 boxes with 12 pens.\n\nAnswer: 5"), (1.0, solution)):
        dataset = sums(solution=[solution, None], result=[5, 5])
        found = contexts_of(make_trainer, PartialExposure(share=share, answer="result"), ["2", "2"], dataset=dataset)
        assert found == [wanted] * 2


@pytest.mark.parametrize("answer", [["a", "b"], {"x": 1}])
def test_an_answer_that_is_neither_text_nor_number(make_trainer, answer):
    dataset = Dataset.from_list([{**row, "answer": answer} for row in SUM_ROWS])
    with pytest.raises(ValueError, match="`answer` names, must hold a text or a number, got"):
        views_and_reads(make_trainer, PartialExposure(answer="answer", hide_answer=True), dataset=dataset)


@pytest.mark.parametrize("answer", [" ", None, math.nan])
def test_no_answer_is_shown_but_can_not_be_hidden(make_trainer, answer):
    dataset = Dataset.from_list([{**row, "answer": answer} for row in SUM_ROWS])
    views, *_ = views_and_reads(make_trainer, PartialExposure(answer="answer"), dataset=dataset)
    assert views[0][0].context == SUM_ROWS[0]["solution"]
    with pytest.raises(
        ValueError, match="The column `answer` has no answer to hide in the column `solution` of the row"
    ):
        views_and_reads(make_trainer, PartialExposure(answer="answer", hide_answer=True), dataset=dataset)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (PartialExposure(column="typo"), "no column `typo`, which the option `column`"),
        (PartialExposure(answer="typo"), "no column `typo`, which the option `answer`"),
        (Shuffled("typo"), "no column `typo`, which the option `column`"),
        (WrongDemonstration("typo"), "no column `typo`, which the option `column`"),
        (Written("typo", author=lambda prompts, rollouts: []), "no column `typo`, which the option `column`"),
        (
            Critic(reference="typo", author=lambda prompts, rollouts: []),
            "no column `typo`, which the option `reference`",
        ),
        (Skills(key="typo", author=lambda prompts, rollouts: []), "no column `typo`, which the option `key`"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_column_that_a_stream_does_not_have(make_trainer, source, text):
    """Its columns are not known before, so it is the first rollout that tells."""
    stream = IterableDataset.from_generator(lambda: iter(SUM_ROWS))
    with pytest.raises(ValueError, match=text) as caught:
        batch_of(make_trainer(dataset=stream, privileged=source))
    assert "the row with prompt" in str(caught.value) and "'solution'" in str(caught.value)


def test_an_answer_that_is_no_text(make_trainer):
    dataset = Dataset.from_list([{**row, "answer": ["3"]} for row in SUM_ROWS])
    with pytest.raises(ValueError, match=r"`answer` of the row with .* .*must hold a text or a number, got \['3'\]"):
        views_and_reads(make_trainer, PartialExposure(answer="answer"), dataset=dataset)


def test_a_solution_that_is_no_text(make_trainer):
    dataset = Dataset.from_list([{**row, "solution": CHAT} for row in SUM_ROWS])
    with pytest.raises(ValueError, match=r"The column `solution` of the row with prompt .* must be text or None"):
        views_and_reads(make_trainer, PartialExposure(), dataset=dataset)


def test_a_scheduled_share(make_trainer):
    """From all four parts to one, over three steps; the steps after that are as the third."""
    seen = []

    class Watched(PartialExposure):
        def __call__(self, groups):
            views = super().__call__(groups)
            seen.append({view.context.count(".") for row in views for view in row})
            return views

    source = Watched(share=1.0, end_share=0.25, steps=3)
    dataset = Dataset.from_list([{**row, "solution": STEPS} for row in SUM_ROWS * 4])
    make_trainer(dataset=dataset, privileged=source, max_steps=5).train()
    assert seen == [{4}, {3}, {2}, {1}, {1}]


def test_a_random_share(make_trainer):
    options = {"dataset": Dataset.from_list([{**row, "solution": STEPS} for row in SUM_ROWS * 16])}
    options["per_device_train_batch_size"] = 64
    views, *_ = views_and_reads(make_trainer, PartialExposure(share="random"), **options)
    counts = Counter(row[0].context.count(".") if row else 0 for row in views)
    assert set(counts) == {0, 1, 2, 3}, "floor of an even draw below 1"
    assert min(counts.values()) > 5
    again, *_ = views_and_reads(make_trainer, PartialExposure(share="random"), **options)
    assert [[v.context for v in row] for row in again] == [[v.context for v in row] for row in views]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"share": 1.5}, "between 0 and 1"),
        ({"share": "half"}, "between 0 and 1"),
        ({"end_share": 0.5}, "belong together"),
        ({"share": "random", "end_share": 0.5, "steps": 2}, "no `end_share`"),
        ({"hide_answer": True}, "needs `answer`"),
    ],
)
def test_bad_exposures(options, text):
    with pytest.raises(ValueError, match=text):
        PartialExposure(**options)


def test_an_answer_that_is_not_in_the_solution(make_trainer):
    source = PartialExposure(answer=r"regex:\\boxed\{(.*)\}")
    with pytest.raises(ValueError, match=r"matches nothing in the column `solution` of the row with prompt .*1 \+ 1"):
        contexts_of(make_trainer, source, ["2", "2"], dataset=sums(solution=[STEPS, STEPS]))


# Retrieval


def test_retrieval_by_words(make_trainer):
    """The most similar rows stand last, the row itself nowhere, a prompt only once."""
    pytest.importorskip("bm25s")
    dataset = Dataset.from_list([*SUM_ROWS, dict(SUM_ROWS[1], solution="again")])
    views, reads, _ = views_and_reads(make_trainer, Retrieval(k=2), dataset)
    own = [row["prompt"][0]["content"] for row in SUM_ROWS]
    shown = [[message["content"] for message in row[0].context if message["role"] == "user"] for row in views]
    for mine, questions, text in zip(own, shown, reads["privileged"], strict=True):
        assert mine not in questions and len(set(questions)) == 2
        assert text.count("<|im_start|>assistant") == 3
    assert shown[0][-1] in (own[1], own[2]), "they share a number with 1 plus 2"
    assert all(own[3] not in questions for questions in shown[:3]), "7 plus 8 shares no number with others"


def by_length(texts):
    return np.array([[len(text), 1.0] for text in texts])


def test_retrieval_by_a_function_as_text(make_trainer):
    dataset = Dataset.from_list([{"prompt": "a" * n, "solution": f"{n} letters"} for n in (2, 3, 9, 200)])
    views, *_ = views_and_reads(make_trainer, Retrieval(by=by_length, as_turns=False), dataset)
    shown = [row[0].context.split("\n")[1] for row in views]
    assert shown == ["3 letters", "2 letters", "200 letters", "9 letters"]
    far, *_ = views_and_reads(make_trainer, Retrieval(by=by_length, least_score=0.9999), dataset)
    assert [len(row) for row in far] == [0, 0, 0, 0]


def test_prompts_that_share_no_word_are_not_alike(make_trainer):
    pytest.importorskip("bm25s")
    questions = ("??", "red apple", "green apple", "nothing else")
    dataset = Dataset.from_list([{"prompt": text, "solution": f"About {text}"} for text in questions])
    views, *_ = views_and_reads(make_trainer, Retrieval(as_turns=False), dataset)
    assert [[view.context for view in row] for row in views] == [
        [], ["green apple\nAbout green apple"], ["red apple\nAbout red apple"], [],
    ]  # fmt: skip


SPELLINGS = ["What is 17 + 25?", "what is 17+25 ?", "**What** is $17 + 25$?", "What is １７ + 25"]
OTHERS = ["What is 17 - 25?", "What is 17 + 2.5?", "Who wrote Faust?"]


@pytest.mark.parametrize("by", ["bm25", by_length])
def test_ones_own_problem_is_shown_in_no_spelling(make_trainer, by):
    """Nor is another one shown twice."""
    if by == "bm25":
        pytest.importorskip("bm25s")
    questions = [*SPELLINGS, *OTHERS, "WHAT IS 17 − 25"]
    dataset = Dataset.from_list([{"prompt": text, "solution": f"About {text}"} for text in questions])
    for source in (Retrieval(k=3, by=by), OtherRow("solution", count=3, with_problem=True)):
        views, *_ = views_and_reads(make_trainer, source, dataset, per_device_train_batch_size=4)
        for row in views:
            shown = "\n".join(view.context for view in row)
            assert not any(f"About {text}\n" in f"{shown}\n" for text in SPELLINGS)
            assert shown.lower().replace("−", "-").count("about what is 17 - 25") == 1
    with pytest.raises(ValueError, match=r"at least two prompts .* there are 1\. Prompts are told apart by the text"):
        make_trainer(dataset=dataset.select(range(4)), privileged=OtherRow("solution"))
    with pytest.raises(ValueError, match=r"`count=4` needs more prompts than the 4"):
        make_trainer(dataset=dataset, privileged=OtherRow("solution", count=4))


def test_words_of_all_scripts_are_alike(make_trainer):
    """Whole words of Hindi, single characters of Chinese."""
    pytest.importorskip("bm25s")
    questions = ["हिन्दी भाषा", "हिन्दी गीत", "हानि", "漢字的問題", "漢字", "apple"]
    dataset = Dataset.from_list([{"prompt": text, "solution": f"About {text}"} for text in questions])
    views, *_ = views_and_reads(make_trainer, Retrieval(k=5), dataset, per_device_train_batch_size=6)
    shown = [row[0].context.split("\n")[0] if row else None for row in views]
    assert shown == ["हिन्दी गीत", "हिन्दी भाषा", None, "漢字", "漢字的問題", None]


class Greeting:
    """An environment that says something at the beginning."""

    def reset(self, **row):
        return "Welcome, whoever you are."

    def look(self) -> str:
        """Look around."""
        return "nothing"


@pytest.mark.parametrize("source", [Retrieval(by=by_length), OtherRow("solution")], ids=["retrieval", "other_row"])
def test_what_an_environment_says_makes_no_other_row_of_ones_own(make_trainer, source):
    tokenizer = agent_tokenizer_with_schema()
    trainer = make_trainer(
        tiny.model(tokenizer, max_position_embeddings=4096), dataset=Dataset.from_list(SUM_ROWS * 4), privileged=source,
        environment_factory=Greeting, processing_class=tokenizer, per_device_train_batch_size=16,
        max_completion_length=8,
    )  # fmt: skip
    batch_of(trainer)
    for rollout, (view,) in zip(trainer.collected.rollouts, trainer.collected.views, strict=True):
        assert "Welcome" in str(rollout.prompt) and rollout.row["solution"] not in str(view.context)


def test_bad_retrievals(make_trainer):
    messages = Dataset.from_list([{**row, "solution": CHAT} for row in SUM_ROWS])
    with pytest.raises(ValueError, match="`solution` holds messages, which can only be shown as turns"):
        make_trainer(dataset=messages, privileged=Retrieval(by=by_length, as_turns=False))
    with pytest.raises(ValueError, match="`k` must be a whole number of at least 1"):
        Retrieval(k=0)
    with pytest.raises(ValueError, match=r"one vector for each of 4 texts, got shape \(1, 1\)"):
        make_trainer(dataset=Dataset.from_list(SUM_ROWS), privileged=Retrieval(by=lambda texts: np.ones((1, 1))))
    stream = Dataset.from_list(SUM_ROWS).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"Retrieval shows other rows of `train_dataset`, .* without streaming"):
        make_trainer(dataset=stream, privileged=Retrieval(by=by_length))
