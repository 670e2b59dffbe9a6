# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Whole runs with turns: what they have in common with runs without, and with themselves."""

import copy

import pytest
import torch
from datasets import Dataset

from batches import batch_of, teacher_reads
from conftest import length_reward
from method_cases import WITH_TURNS
from runs import SAMPLED, assert_same_run, history, interrupted
from trl_opsd import View
from trl_opsd.methods import method_of
from trl_opsd.privileged import Source
from turn_cases import by_role, check_gradients, numbered, row_loss


SOURCE = {"with_attempt": {"source": "column"}}
PLAIN = {**SAMPLED, "privileged_source": "none", "teacher_model_kind": "live", "reward_funcs": length_reward}
TURNS = {"slots": ["first", "distil"], "source": {"fixed": {"context": "Mind the sign."}}}


@pytest.mark.parametrize("reward", [True, False])
def test_first_turns_alone_are_a_run_without_turns(make_trainer, reward):
    options = {"reward_funcs": length_reward} if reward else {}
    one = make_trainer(**options)
    one.train()
    other = make_trainer(**options, turns={"slots": ["first"]})
    other.train()
    logs = [{name: value for name, value in log.items() if "turns/" not in name} for log in history(other)]
    assert history(one) == logs
    for (name, weight), same in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(weight, same), name


def test_units_that_never_go_on_are_grpo_on_all_rows(make_trainer):
    """Given the same texts: the calls give row by row what one call gives at once."""
    texts = [[3 + (i * 7 + j * 11) % 250 for j in range(2 + i % 5)] + [2] for i in range(8)]
    trainers = []
    for turns in (None, {**TURNS, "when": {"probability": 0.0}}):
        trainer = make_trainer(**PLAIN, turns=turns, num_generations=4, per_device_train_batch_size=8)
        parts = [texts] if turns is None else [texts[0::2], texts[1::2]]
        calls = []

        def single_turn(ids, *_, parts=parts, calls=calls):
            calls.append(len(ids))
            return parts[(len(calls) - 1) % len(parts)], None

        trainer._generate_single_turn = single_turn
        trainer.train()
        trainers.append(trainer)
    one, other = trainers
    assert set(by_role(other)) == {"first"}
    for (name, weight), same in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(weight, same, rtol=0, atol=0, msg=name)


def test_the_gradient_is_that_of_each_row_by_itself(make_trainer):
    trainer = make_trainer(**PLAIN, turns=TURNS, num_generations=4, per_device_train_batch_size=8)
    numbered(trainer)
    batch = batch_of(trainer)
    assert sorted(set(by_role(trainer))) == ["distil", "first"]
    advantages = batch["advantages"].unsqueeze(1)
    of_role = {one.index: one.role for one in trainer.collected.rollouts}
    roles = [of_role[i] for i in batch["distillation"].index.tolist()]
    for role in ("first", "distil"):
        assert any(a != 0 and r == role for a, r in zip(advantages.squeeze(1).tolist(), roles, strict=True))
    check_gradients(trainer, batch, row_loss(trainer, batch, advantages)[1])


def test_micro_batches_change_nothing(make_trainer):
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            **PLAIN, turns={**TURNS, "slots": ["first", "second", "distil", "reread"]}, num_generations=4, max_steps=1,
            per_device_train_batch_size=size, gradient_accumulation_steps=steps, optim="sgd", max_grad_norm=0.0,
        )  # fmt: skip
        numbered(trainer)
        start = copy.deepcopy(trainer.model)
        trainer.train()
        pairs = zip(trainer.model.parameters(), start.parameters(), strict=True)
        weights.append(torch.cat([(one - other).detach().flatten() for one, other in pairs]))
    assert weights[0].abs().max() > 0
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-6)


BUFFERED = {"steps_per_generation": 2, "num_iterations": 2, "gradient_accumulation_steps": 1}


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_resumed_run_is_the_uninterrupted_one(make_trainer, tmp_path, step):
    """Within a generation batch that lasts for four steps, and at its end."""
    options = {
        **PLAIN, **BUFFERED, "num_generations": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": 1,
        "turns": TURNS,
    }  # fmt: skip
    whole = make_trainer(**options, output_dir=str(tmp_path / "whole"))
    whole.train()
    interrupted(make_trainer, step, **options, output_dir=str(tmp_path / "killed"))
    resumed = make_trainer(**options, output_dir=str(tmp_path / "killed"))
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


class Counting(Source):
    """A source whose context is the number of its calls, which a checkpoint keeps."""

    calls = 0

    def __call__(self, groups):
        self.calls += 1
        return [[View(f"Call {self.calls}.")] for group in groups for _ in group]

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def test_the_state_of_the_source_is_saved(make_trainer):
    options = {
        **PLAIN, "num_generations": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 1,
        "turns": {**TURNS, "source": "test_turn_runs.Counting"},
    }  # fmt: skip
    interrupted(make_trainer, 2, **options)
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.turns.source.calls == 4
    assert {one.turn_view.context for one in resumed.collected.rollouts} == {"Call 4."}


def test_evaluations_have_no_turns(make_trainer, rows):
    """Same weights, same evaluation."""
    options = {
        "reward_funcs": length_reward, "eval_dataset": Dataset.from_list(rows[:8]), "per_device_eval_batch_size": 8,
        "num_generations": 2,
    }  # fmt: skip
    one, other = make_trainer(**options), make_trainer(**options, turns={**TURNS, "source": "column"})
    found = [
        {name: value for name, value in trainer.evaluate().items() if "_second" not in name and "time" not in name}
        for trainer in (one, other)
    ]
    assert found[0] == found[1] and found[0]["eval_loss"] > 0
    assert set(by_role(other)) == {"first"}


def test_what_the_teacher_reads_of_the_turns(make_trainer, rows):
    """The context of the unit where the bare prompt is trained, the bare prompt where the context is; and rows about
    which no source was asked yet are asked about now."""
    for row in rows:
        row["privileged_context"] = "Add the tens."
    turns = {"slots": ["first", "second", "distil", "reread"], "source": SOURCE, "when": {"probability": 0.5}}
    trainer = make_trainer(
        turns=turns, num_generations=4, per_device_train_batch_size=16, shuffle_dataset=False,
        privileged_source={"turn_context": {"roles": ["first", "second", "distil", "reread"]}},
    )  # fmt: skip
    numbered(trainer)
    batch = batch_of(trainer)
    decode, rollouts = trainer.processing_class.decode, trainer.collected.rollouts
    assert {one.role for one in rollouts} == {"first", "second", "distil", "reread", "idle"}
    index = batch["distillation"].index.tolist()
    for name in ("privileged", "bare"):
        weights = batch["distillation"].views[name].weight.tolist()
        for place, ids, weight in zip(index, teacher_reads(batch, name), weights, strict=True):
            one = rollouts[place]
            wanted = "bare" if one.role in ("second", "reread") else None if one.role == "idle" else "privileged"
            assert (weight > 0) == (wanted == name), (place, one.role)
            if weight and name == "privileged":
                assert "Add the tens." in decode(ids)
                own = one.completion_ids if one.attempt is None or not one.attempt.wanted else None
                said = decode(own or one.attempt.completion_ids, skip_special_tokens=True).strip()
                assert said in decode(ids), "the attempt that the context is about"
            if weight and name == "bare":
                assert "Add the tens." not in decode(ids) and "Add the tens." in str(one.prompt)


def test_an_empty_context_teaches_nothing(make_trainer):
    """The student's own prompt as that of the second turn, and live weights that read it: no divergence."""
    turns = {"slots": ["distil"], "source": "bare"}
    trainer = make_trainer(turns=turns, privileged_source="turn_context", teacher_model_kind="live", max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["self_distillation/view_share"] == 1.0 and log["self_distillation/divergence"] == 0.0
    assert log["loss"] == 0.0 and log["grad_norm"] == pytest.approx(0.0, abs=1e-6)


def test_metrics(make_trainer, rows):
    trainer = make_trainer(
        **PLAIN, turns={**TURNS, "source": "column"}, num_generations=2, per_device_train_batch_size=8
    )
    trainer.train()
    log = trainer.state.log_history[-2]
    units, rollouts = trainer.turns.units, trainer.collected.rollouts
    second = [one for one in rollouts if one.role == "distil"]
    assert 0 < len(second) < 4
    expected = {
        "first_reward": sum(unit.attempt.total for unit in units) / 4,
        "second_reward": sum(one.total for one in second) / len(second),
        "unit_share": len(second) / 4,
        "second_length": sum(len(one.completion_ids) for one in second) / len(second),
    }
    for name, value in expected.items():
        assert log[f"self_distillation/turns/{name}"] == pytest.approx(value), name


def test_the_table_of_completions_has_the_roles(make_trainer):
    trainer = make_trainer(**PLAIN, turns=TURNS, num_generations=2, log_completions=True, max_steps=1)
    trainer.train()
    assert list(trainer._logs["extra"]["role"]) == ["first", "distil"] * 2


def test_quotes_of_a_second_turn(make_trainer, tokenizer):
    """A `distil` row is written with the context in view and trained without, so what it quotes counts as a leak, also
    where no teacher reads the context."""
    said = "the answer to this one is seven as I was told"
    turns = {"slots": ["first", "distil"], "source": {"fixed": {"context": f"Note: {said}."}}}
    trainer = make_trainer(**PLAIN, turns=turns, num_generations=2, max_steps=1)
    trainer._generate_single_turn = lambda ids, *_: (
        [tokenizer(f"Well, {said}.<|im_end|>")["input_ids"]] * len(ids),
        None,
    )
    trainer.train()
    assert trainer.state.log_history[0]["self_distillation/leak/quotes"] == 0.5


@pytest.mark.parametrize("name", WITH_TURNS)
def test_methods_of_turns_train_and_evaluate(make_trainer, rows, name):
    """With scores of first turns alone, and the same scores as before the training where the rate is 0."""
    rows = [{**row, "privileged_context": "Mind the sign."} for row in rows]
    turns = {**method_of(name).defaults["turns"]}
    turns |= {"given": "privileged_context"} if "given" in turns else {"source": "column"}
    trainer = make_trainer(
        method=name, turns=turns, reward_funcs=length_reward, num_generations=12, per_device_train_batch_size=12,
        dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows[:4]), per_device_eval_batch_size=12,
        learning_rate=0.0, max_steps=6,
    )  # fmt: skip
    before = trainer.evaluate()
    trainer.train()
    assert {"first", "distil", "feedback", "given", "reread", "second"} & set(by_role(trainer))
    after = trainer.evaluate()
    assert set(by_role(trainer)) == {"first"}
    assert before["eval_avg@12"] == after["eval_avg@12"] > 0
    assert all(torch.isfinite(param).all() for param in trainer.model.parameters())
