# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Contexts that should not help, or less, on real batches."""

import re
from collections import Counter

import pytest
from datasets import Dataset

from batches import batch_of, student_prompts, teacher_reads
from scripted import right, sums, writing
from trl_opsd import View
from trl_opsd.privileged import DatasetColumn, Empty, OtherRow, Shuffled, WrongDemonstration, rollout_rng
from views import SUM_ROWS, contexts_of, views_and_reads


def test_another_rows_context(make_trainer):
    options = {"dataset": Dataset.from_list(SUM_ROWS * 16), "per_device_train_batch_size": 64}
    views, *_ = views_and_reads(make_trainer, OtherRow("solution"), **options)
    drawn = [row[0].context for row in views]
    own = [row["solution"] for row in SUM_ROWS] * 16
    assert not any(a == b for a, b in zip(drawn, own, strict=True))
    assert set(drawn) == set(own) and min(Counter(drawn).values()) > 4


def test_worked_examples_of_other_problems(make_trainer):
    views, reads, _ = views_and_reads(make_trainer, OtherRow("solution", with_problem=True, count=3))
    for row, own in zip(views, SUM_ROWS, strict=True):
        assert [view.name for view in row] == [f"privileged-{i}" for i in (1, 2, 3)]
        others = {f"{one['prompt'][0]['content']}\n\n{one['solution']}" for one in SUM_ROWS if one is not own}
        assert {view.context for view in row} == others
    assert len(reads) == 3


def test_other_rows_that_are_not_there(make_trainer):
    with pytest.raises(ValueError, match=r"`count=4` needs more prompts than the 4"):
        make_trainer(dataset=Dataset.from_list(SUM_ROWS), privileged=OtherRow("solution", count=4))
    with pytest.raises(ValueError, match=r"OtherRow needs rows of at least two prompts .* there are 1"):
        make_trainer(dataset=Dataset.from_list(SUM_ROWS[:1] * 4), privileged=OtherRow("solution"))
    with pytest.raises(ValueError, match="`count` must be a whole number of at least 1, got 0"):
        OtherRow(count=0)


def test_shuffled_words(make_trainer):
    text = "alpha beta gamma delta epsilon zeta eta theta"
    dataset = Dataset.from_list([{**row, "hint": text} for row in SUM_ROWS])
    views, *_ = views_and_reads(make_trainer, Shuffled("hint"), dataset)
    orders = [row[0].context for row in views]
    assert all(sorted(order.split()) == sorted(text.split()) for order in orders)
    assert len({*orders, text}) == 5, "each row in an order of its own"
    dataset = Dataset.from_list(
        [{**row, "hint": text} for row, text in zip(SUM_ROWS, ["42", "a b", "x x", None], strict=True)]
    )
    views, *_ = views_and_reads(make_trainer, Shuffled("hint"), dataset)
    assert [[view.context for view in row] for row in views] == [[], ["b a"], [], []], "never as it was"


def test_an_empty_context_keeps_the_templates_words(make_trainer):
    template = "Here is a solution: {privileged_context}\nUse it."
    _, reads, _ = views_and_reads(make_trainer, Empty(template=template, place="after_user"))
    for text, row in zip(reads["privileged"], SUM_ROWS, strict=True):
        asked = row["prompt"][0]["content"]
        assert re.search(re.escape(asked) + r"\s+Here is a solution: ?\s*\nUse it\.<\|im_end\|>", text), text


@pytest.mark.parametrize("template", [" Here is it: {privileged_context}. Use it.", "Read:\n{privileged_context}\n"])
def test_an_empty_context_joins_the_prompt_as_another_does(make_trainer, template):
    """White space at the template's ends decides whether an empty line comes between."""
    _, reads, _ = views_and_reads(make_trainer, DatasetColumn("solution", template=template))
    _, empty, _ = views_and_reads(make_trainer, Empty(template=template))
    for full, bare, row in zip(reads["privileged"], empty["privileged"], SUM_ROWS, strict=True):
        assert bare.split() == full.replace(row["solution"], "").split()
        begin = full.index(row["prompt"][0]["content"])
        end = full.index(row["solution"])
        assert bare[begin:end].rstrip() == full[begin:end].rstrip()


def test_an_empty_context_without_words_is_the_students_prompt(make_trainer):
    trainer = make_trainer(privileged=Empty(template="{privileged_context}"), teacher_model_kind="live")
    batch = batch_of(trainer)
    assert teacher_reads(batch) == student_prompts(batch)
    assert all(row == [View()] for row in trainer.collected.views)


def test_wrong_demonstrations_of_the_group(make_trainer):
    found = contexts_of(make_trainer, WrongDemonstration(), ["2", "no", "<think>hm</think>3"], ["5", "5", "5"])
    assert found[0] in ("no", "3") and found[1:] == ["3", "no", None, None, None]
    kept = contexts_of(make_trainer, WrongDemonstration(keep_thinking=True), ["2", "no", "<think>hm</think>3"])
    assert kept[1] == "<think>hm</think>3"


@pytest.mark.parametrize(("choice", "wanted"), [("shortest", ["3", "no"]), ("longest", ["never", "no"])])
def test_wrong_demonstrations_by_length(make_trainer, choice, wanted):
    trainer = make_trainer(
        dataset=sums(), privileged=WrongDemonstration(choice=choice, count=2), reward_funcs=right, num_generations=4,
        per_device_train_batch_size=8, rollout_func=writing(["2", "no", "3", "never"], ["5"] * 4),
        max_completion_length=50, shuffle_dataset=False,
    )  # fmt: skip
    batch_of(trainer)
    assert [view.context for view in trainer.collected.views[0]] == wanted


def test_several_wrong_demonstrations(make_trainer):
    trainer = make_trainer(
        dataset=sums(), privileged=WrongDemonstration(count=3), reward_funcs=right, num_generations=4,
        rollout_func=writing(["2", "a", "b", "c"], ["5"] * 4), per_device_train_batch_size=8, max_completion_length=20,
    )  # fmt: skip
    batch_of(trainer)
    assert [len(row) for row in trainer.collected.views] == [3, 2, 2, 2, 0, 0, 0, 0]
    assert {view.context for view in trainer.collected.views[0]} == {"a", "b", "c"}


def test_a_wrong_demonstration_from_a_column(make_trainer):
    source = WrongDemonstration("wrong")
    found = contexts_of(make_trainer, source, ["2", "1"], ["5", "5"], dataset=sums(wrong=["3", None]))
    assert found == ["3", "3", None, None]
    with pytest.raises(ValueError, match="`count` must be 1 with a `column`"):
        WrongDemonstration("wrong", count=2)


def test_draws_differ_between_batches_of_one_step(make_trainer):
    """An evaluation of one row at a time, at one step and one place, draws anew for each prompt."""
    rows = [{"prompt": f"Question {i}?", "solution": f"Answer {i}."} for i in range(12)]
    drawn = []

    class Watched(OtherRow):
        def __call__(self, groups):
            views = super().__call__(groups)
            drawn.extend(row[0].context for row in views)
            return views

    data = Dataset.from_list(rows)
    trainer = make_trainer(
        dataset=data, eval_dataset=data, privileged=Watched("solution"), per_device_eval_batch_size=1
    )
    trainer.evaluate()
    assert len(drawn) == 12 and len(set(drawn)) > 5
    first, second = trainer.collected.rollouts[0], trainer.collected.rollouts[0]
    assert (
        rollout_rng(first, 0, "x").random()
        == rollout_rng(second, 0, "x").random()
        != rollout_rng(first, 1, "x").random()
    )
