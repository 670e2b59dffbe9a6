# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A run that would take no step is an error, before the model is loaded where the rows can be counted."""

import pytest
from datasets import Dataset, IterableDataset
from trl import GRPOConfig

from conftest import length_reward


BATCH = {"per_device_train_batch_size": 4, "num_generations": 1}  # four rows of a generation batch
NO_MODEL = "no/such-model"  # loading it would be another error
REWARD = {"reward_funcs": length_reward}


def make(make_trainer, rows, count, **options):
    return make_trainer(dataset=Dataset.from_list(rows[:count]), **{**BATCH, **options})


CASES = {
    "steps": (3, {}),
    "epochs": (3, {"max_steps": -1, "num_train_epochs": 3}),
    "accumulation": (7, {"gradient_accumulation_steps": 2}),
    "a larger generation batch": (11, {"steps_per_generation": 3}),
    "groups": (3, {"num_generations": 2, "per_device_train_batch_size": 8, **REWARD}),
    "several iterations": (3, {"num_iterations": 2}),
    "evaluation while it trains": (3, {"eval_strategy": "epoch"}),
    "plain GRPO": (3, {"num_generations": 2, "per_device_train_batch_size": 8, "config": GRPOConfig, **REWARD}),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_that_fill_no_generation_batch(make_trainer, rows, case):
    count, options = CASES[case]
    if "eval_strategy" in options:
        options = {**options, "eval_dataset": Dataset.from_list(rows)}
    with pytest.raises(ValueError, match=rf"^`train_dataset` has {count} rows, and .* takes {count + 1},") as caught:
        make(make_trainer, rows, count, model=NO_MODEL, **options)
    names = ("generation_batch_size", "per_device_train_batch_size", "steps_per_generation", "num_generations")
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("case", [case for case in CASES if case != "evaluation while it trains"])
def test_one_row_more_trains(make_trainer, rows, case):
    count, options = CASES[case]
    trainer = make(make_trainer, rows, count + 1, **options)
    trainer.train()
    assert trainer.state.global_step > 0


@pytest.mark.parametrize("options", [{"max_steps": 0}, {"max_steps": -1, "num_train_epochs": 0}], ids=str)
def test_options_that_ask_for_no_step(make_trainer, rows, options):
    """Transformers takes one step for `max_steps=0`, and none for no epoch."""
    with pytest.raises(ValueError, match=r"^`(max_steps|num_train_epochs)=0` asks for no training step"):
        make(make_trainer, rows, 16, model=NO_MODEL, **options)


def test_a_stream_of_too_few_rows(make_trainer, rows):
    stream = IterableDataset.from_generator(lambda: iter(rows[:3]))
    trainer = make_trainer(dataset=stream, **BATCH)
    with pytest.raises(ValueError, match="ended without a step: `train_dataset` streams fewer rows than"):
        trainer.train()


def test_evaluation_alone_needs_no_generation_batch(make_trainer, rows):
    """A trainer with `eval_dataset` that does not evaluate while it trains may be for `evaluate` alone."""
    trainer = make(make_trainer, rows, 3, eval_dataset=Dataset.from_list(rows[:3]))
    assert trainer.evaluate()["eval_self_distillation/view_share"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="has 3 rows"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_an_evaluation_of_no_rows(make_trainer, rows):
    with pytest.raises(ValueError, match="`eval_dataset` has no rows"):
        make_trainer(model=NO_MODEL, eval_dataset=Dataset.from_list(rows).select([]))
