# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Teacher's outputs over several passes (`num_iterations`): in the model's type, and no longer than they are read."""

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

import tiny
from conftest import length_reward
from runs import SAMPLED, assert_same_run, interrupted
from scripted import long_answers
from trl_opsd.memory import Run, Shape, parts
from trl_opsd.model import forward


PASSES = {"num_iterations": 2, "steps_per_generation": 4, "gradient_accumulation_steps": 1, "max_steps": 12}


class Held(TrainerCallback):
    """What is kept after each step: number of forwards, bytes and types."""

    def __init__(self):
        self.found = []

    def on_step_end(self, args, state, control, **kwargs):
        kept = self.trainer.objective.kept.tensors()
        self.found.append((len(kept), sum(one.nbytes for one in kept), {one.dtype for one in kept}))


def held_in(make_trainer, **options):
    callback = Held()
    callback.trainer = trainer = make_trainer(callbacks=[callback], **{**PASSES, **options})
    trainer.train()
    return trainer, callback.found


def test_dropped_after_the_last_use(make_trainer):
    """Each pass over a buffer of four micro-batches: four answers are there after the first, none after the second."""
    _, found = held_in(make_trainer)
    assert [count for count, *_ in found] == [1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4]


def test_three_passes(make_trainer):
    _, found = held_in(make_trainer, num_iterations=3, steps_per_generation=2, max_steps=6)
    assert [count for count, *_ in found] == [1, 2, 2, 2, 1, 0]


@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 1},
        {"teacher_model_kind": "live"},
        {"teacher_model_kind": "ema", "teacher_update_rate": 0.5},
    ],
    ids=["one pass", "live", "a teacher that moves at each step"],
)
def test_what_is_never_read_again_is_not_there(make_trainer, options):
    """Of a teacher that has moved, no more than what it gave last: the next forward finds that it is stale."""
    _, found = held_in(make_trainer, **options)
    assert max(count for count, *_ in found) <= ("teacher_update_rate" in options)


def test_evaluations_keep_nothing(make_trainer, rows):
    _, found = held_in(make_trainer, eval_dataset=Dataset.from_list(rows), eval_strategy="steps", eval_steps=1)
    assert [count for count, *_ in found] == [1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4]


TYPES = [(kind, bf16, "float32" if kind == "float32" and not bf16 else "bfloat16")
         for kind in ("float32", "bfloat16") for bf16 in (False, True)]  # fmt: skip


@pytest.mark.parametrize(("dtype", "bf16", "kind"), TYPES)
def test_the_type_is_that_of_the_models_products(make_trainer, tokenizer, dtype, bf16, kind):
    """Accelerate raises what a model returns to float32: twice the memory for the same numbers."""
    model = tiny.model(tokenizer).to(getattr(torch, dtype))
    _, found = held_in(make_trainer, model=model, bf16=bf16, use_cpu=True, max_steps=4)
    assert found[-1][2] == {getattr(torch, kind)}


def test_scores_stay_exact(make_trainer, tokenizer):
    """Log-probabilities and entropies, two numbers of a token, are float32."""
    model = tiny.model(tokenizer).to(torch.bfloat16)
    _, found = held_in(make_trainer, model=model, bf16=True, use_cpu=True, max_steps=4, **SAMPLED)
    assert found[-1][2] == {torch.float32}


def test_hidden_states_that_are_compared_keep_their_own_type(make_trainer):
    options = {"reward_funcs": length_reward, "bf16": True, "use_cpu": True, "max_steps": 4}
    _, found = held_in(make_trainer, method="unisd", **options)
    assert found[-1][2] == {torch.float32}


def test_the_type_changes_no_number(make_trainer, monkeypatch):
    """Under autocast the head casts what it reads: to keep it cast is the same run, to the last bit."""
    options = {**PASSES, "bf16": True, "use_cpu": True, "rollout_func": long_answers}
    narrow = make_trainer(**options)
    narrow.train()
    run = forward.TeacherRequest.run

    def exact(self, *given):
        self.for_head_alone = False
        return run(self, *given)

    monkeypatch.setattr(forward.TeacherRequest, "run", exact)
    wide = make_trainer(**options)
    wide.train()
    assert_same_run(narrow, wide)


@pytest.mark.parametrize("step", [5, 6, 7])
def test_a_resumed_run_drops_them_too(make_trainer, step):
    """Resumed within the second pass, whose answers no later one reads, or within the first."""
    options = {**PASSES, "save_strategy": "steps", "save_steps": 1, "max_steps": 10}
    interrupted(make_trainer, step, **options)
    callback = Held()
    callback.trainer = trainer = make_trainer(callbacks=[callback], **options)
    trainer.train(resume_from_checkpoint=True)
    counts = [count for count, *_ in callback.found]
    assert counts == [0] * (8 - step) + [1, 2]


def test_a_run_resumed_within_the_first_pass(make_trainer):
    options = {**PASSES, "save_strategy": "steps", "save_steps": 1, "max_steps": 8}
    interrupted(make_trainer, 2, **options)
    callback = Held()
    callback.trainer = trainer = make_trainer(callbacks=[callback], **options)
    trainer.train(resume_from_checkpoint=True)
    assert [count for count, *_ in callback.found] == [1, 2, 2, 2, 1, 0]


def test_the_memory_calculator_counts_them(make_trainer, tokenizer, rows):
    """All answers of a buffer, at the end of the first pass."""
    data = [{**row, "privileged_context": "x"} for row in rows]
    trainer, found = held_in(make_trainer, dataset=Dataset.from_list(data), rollout_func=long_answers, max_steps=4)
    shape = Shape(trainer.model.config.to_dict())
    setting = {"engine": "none", "gpus": 1, "vllm": False, "device": "cpu", "bf16": False, "rows": 4, "accumulation": 4}
    sizes = {
        iterations: sum(
            part.bytes
            for part in parts(Run(shape, **setting, prompt=20, completion=8, teacher_prompt=30, iterations=iterations))
            if part.name == "teacher: kept hidden states"
        )
        for iterations in (1, 2)
    }
    assert sizes == {1: 0, 2: found[-1][1]} and found[-1][1] == 4 * 4 * 8 * 32 * 4
