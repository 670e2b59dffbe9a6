# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Reading a data set through: values, time, and the bar of one that takes long."""

import time

import datasets
import pytest
from datasets import Dataset

from trl_opsd.privileged import rows as module
from trl_opsd.privileged.rows import data_rows


COUNT = 450  # two whole batches and a part of one


def data(count=COUNT):
    prompts = [[{"role": "user", "content": f"{i} + {i}?"}] for i in range(count)]
    rows = [{"prompt": prompt, "solution": f"It is {2 * i}.", "other": i} for i, prompt in enumerate(prompts)]
    return Dataset.from_list(rows)


def marked(batch):
    """A format's function that needs a column beside those that are read."""
    return {**batch, "solution": [f"{text} ({i})" for text, i in zip(batch["solution"], batch["other"], strict=True)]}


FORMATS = {
    "plain": data,
    "shuffled": lambda: data().shuffle(seed=1),
    "a part": lambda: data().select(range(5, 250)),
    "with a function": lambda: data().with_transform(marked),
    "one row": lambda: data(1),
    "none": lambda: data().select([]),
}


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("columns", [["prompt", "solution"], ["solution"], ["prompt", "prompt"]], ids=str)
def test_values_are_those_of_the_columns(make, columns):
    dataset = make()
    assert list(data_rows(dataset, columns, "x")) == list(zip(*(dataset[column] for column in columns), strict=True))


@pytest.mark.parametrize("seconds", [0.0, 1.1])
def test_a_bar_where_it_takes_long(seconds, capsys):
    datasets.enable_progress_bars()  # which the command switches off where nobody watches
    for number, _ in enumerate(data_rows(data(), ["solution"], "train_dataset")):
        time.sleep(seconds if number == 0 else 0.0)
    assert ("Reading `train_dataset`: 100%" in capsys.readouterr().err) == (seconds > 1)


def test_checks_of_many_rows_take_less_than_a_second(make_trainer):
    dataset = data(20_000)
    make_trainer(dataset=dataset.select(range(16)), privileged_column="solution")  # what is imported at the first
    start = time.process_time()
    make_trainer(dataset=dataset, privileged_column="solution")
    assert time.process_time() - start < 1.0


def test_a_batch_is_not_the_whole(monkeypatch):
    """Rows may hold images: only those of one batch are there at once."""
    sizes = []
    whole = Dataset.__getitem__

    def watched(self, key):
        sizes.append(len(range(*key.indices(len(self)))))
        return whole(self, key)

    monkeypatch.setattr(Dataset, "__getitem__", watched)
    next(data_rows(data(), ["solution"], "x"))
    assert sizes == [module._BATCH]
