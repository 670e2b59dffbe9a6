# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""RLTF-SD: returns of first turns, and second turns trained without the critique against first ones."""

import math
from dataclasses import replace

import pytest
import torch

from batches import batch_of
from method_cases import signals
from trl_opsd.batches.roles import Roles
from trl_opsd.methods.runtime import MethodRun
from turn_cases import by_role, check_gradients, numbered, row_loss


TURNS = {"slots": ["first", "second", "distil"], "source": {"fixed": {"context": "Look again."}}, "otherwise": "idle"}


def trainer_of(make_trainer, rewards, turns=TURNS, options=None, **others):
    """Two prompts of four units. Rewards of first and second turns of each prompt, by the number of the unit."""
    said = {}

    def reward(completions, completion_ids, **_):
        return [said[tuple(ids)] for ids in completion_ids]

    size = len(turns["slots"])
    trainer = make_trainer(
        method="rltf_sd", method_options=options or {}, turns=turns, reward_funcs=reward, num_generations=4 * size,
        per_device_train_batch_size=8 * size, shuffle_dataset=False, **others,
    )  # fmt: skip
    numbered(trainer)
    sample = trainer._generate_single_turn

    def single_turn(prompts, *_):
        texts, logps = sample(prompts)
        second = "Look again." in trainer.processing_class.decode(prompts[0])
        for unit, ids in enumerate(texts):
            number = (
                unit
                if not second
                else [i for i, value in enumerate([*rewards[0][0], *rewards[0][1]]) if value < 1][unit]
            )
            said[tuple(ids)] = rewards[second][number // 4][number % 4]
        return texts, logps

    trainer._generate_single_turn = single_turn
    return trainer


FIRST = [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 1.0]]
SECOND = [[1.0, math.nan, 0.0, 1.0], [0.25, 1.0, 1.0, math.nan]]
WHEN = {**TURNS, "when": "failed"}


def expected(first, second, coefficient, gamma, baseline):
    """Advantages by role and unit, from the formulas."""
    found = {}
    for prompt in range(2):
        r0, r1 = first[prompt], second[prompt]
        there = [value for value in r1 if not math.isnan(value)]
        returns = [a + gamma * (0 if math.isnan(b) else b) for a, b in zip(r0, r1, strict=True)]
        base = {"first": sum(r0) / 4, "second": sum(there) / len(there), "none": 0.0}[baseline]
        for unit in range(4):
            number = 4 * prompt + unit
            found["first", number] = returns[unit] - sum(returns) / 4
            if not math.isnan(r1[unit]):
                found["second", number] = r1[unit] - sum(there) / len(there)
                found["distil", number] = coefficient * (r1[unit] - base)
    return found


@pytest.mark.parametrize("slots", [["first", "second", "distil"], ["first", "distil"]])
@pytest.mark.parametrize("baseline", ["first", "second", "none"])
def test_the_gradient_is_that_of_the_formulas(make_trainer, slots, baseline):
    """In float64, row by row; every second token or so is under the floor."""
    options = {"coefficient": 0.7, "gamma": 0.3, "baseline": baseline}
    trainer = trainer_of(make_trainer, (FIRST, SECOND), {**WHEN, "slots": slots}, options)
    batch = batch_of(trainer)
    wanted = expected(FIRST, SECOND, 0.7, 0.3, baseline)
    rollouts = trainer.collected.rollouts
    assert sorted(by_role(trainer)) == sorted(["first"] * 8 + slots[1:] * 6 + ["idle"] * (2 * len(slots[1:]))), (
        "two units were right at once"
    )
    index = batch["distillation"].index.tolist()
    values = [0.0 if rollouts[i].role == "idle" else wanted[rollouts[i].role, rollouts[i].attempt.index] for i in index]
    assert batch["advantages"].tolist() == pytest.approx(values, abs=1e-6)
    roles = [rollouts[i].role for i in index]
    under, rows = [], iter(roles)

    def score(logps, own, mask):
        if next(rows) != "distil":
            return -(own * logps * mask).sum()
        floor = logps.detach() >= -5.0
        under.extend((~floor).tolist())
        return -(own * logps * mask * floor).sum()

    check_gradients(trainer, batch, row_loss(trainer, batch, torch.tensor(values).unsqueeze(1), score)[1])
    assert any(under) and not all(under), "of the tokens of `distil` rows"


def test_the_floor():
    batch = signals("rltf_sd", ["privileged"])
    logps = torch.linspace(-9, -1, 24, dtype=torch.float64).view(4, 6)

    def made(**changes):
        roles = Roles(torch.tensor([0, 2, 2, 1]), {}, {}, torch.tensor(1.0))
        run = MethodRun("rltf_sd", changes.pop("options", None))
        one = replace(batch, step_context=run.step_context([]), roles=roles, **changes)
        return run.advantages(one)

    rows = torch.tensor([[False], [True], [True], [False]])
    for changes in ({"student_logps": logps}, {"student_logps": logps * 0, "old_logps": logps}):
        wanted = batch.advantages.expand(4, 6).masked_fill(rows & (logps < -5), 0.0)
        torch.testing.assert_close(made(**changes), wanted)
    unknown = logps.masked_fill(logps > -6, torch.nan)
    wanted = batch.advantages.expand(4, 6).masked_fill(rows & (logps < -5), 0.0)
    torch.testing.assert_close(made(student_logps=logps, old_logps=unknown), wanted)
    torch.testing.assert_close(
        made(student_logps=logps, options={"floor": -1000.0}), batch.advantages.expand(4, 6).clone()
    )


def test_without_second_turns_it_is_centred_grpo(make_trainer):
    """GRPO on all rows that does not divide by the deviation, given the same texts."""
    texts = [[3 + (i * 7 + j * 11) % 250 for j in range(2 + i % 5)] + [2] for i in range(8)]
    trainers = []
    for turns in (None, {**TURNS, "slots": ["first", "distil"], "otherwise": "first", "when": {"probability": 0.0}}):
        own = {"method": "rltf_sd", "turns": turns}
        if turns is None:
            own = {"distillation_mode": "sampled_token", "distillation_alpha": 1.0, "privileged_source": "none"}
        trainer = make_trainer(
            **own, scale_rewards="none", num_generations=4, per_device_train_batch_size=8, optim="sgd",
            reward_funcs=lambda completion_ids, **_: [float(len(ids)) for ids in completion_ids],
            teacher_model_kind="live", max_steps=1,
        )  # fmt: skip
        parts = [texts] if turns is None else [texts[0::2], texts[1::2]]
        trainer._generate_single_turn = lambda ids, *_, parts=parts: (parts.pop(0), None)
        trainer.train()
        trainers.append(trainer)
    assert trainers[0].state.log_history[0]["grad_norm"] > 0
    for one, other in zip(trainers[0].model.parameters(), trainers[1].model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def distil_advantages(trainer):
    batch = batch_of(trainer)
    rollouts = trainer.collected.rollouts
    pairs = zip(batch["distillation"].index.tolist(), batch["advantages"].tolist(), strict=True)
    return [value for i, value in pairs if rollouts[i].role == "distil"]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_second_turns_teach_nothing_against_themselves(make_trainer, value):
    rewards = FIRST, [[value] * 4] * 2
    assert distil_advantages(trainer_of(make_trainer, rewards, WHEN, {"baseline": "second"})) == [0.0] * 6
    against_first = distil_advantages(trainer_of(make_trainer, rewards, WHEN))
    assert len(against_first) == 6 and all((one > 0) == (value == 1.0) for one in against_first)


def test_a_group_that_is_right_at_once_has_no_second_turn(make_trainer):
    trainer = trainer_of(make_trainer, ([[1.0] * 4] * 2, SECOND), WHEN, max_steps=1)
    trainer.train()
    assert set(by_role(trainer)) == {"first", "idle"}
    assert trainer.state.log_history[0]["grad_norm"] == 0.0


def test_the_coefficient_may_rise(make_trainer):
    trainer = trainer_of(make_trainer, (FIRST, SECOND), WHEN, {"coefficient": 0.8, "ramp": 1.0})
    assert set(distil_advantages(trainer)) == {0.0}
    trainer.method.progress = 0.5
    half = trainer.method.credit(trainer.collected.groups)
    wanted = expected(FIRST, SECOND, 0.4, 0.1, "first")
    for one in trainer.collected.rollouts:
        if one.role == "distil":
            assert half[one.index] == pytest.approx(wanted["distil", one.attempt.index])


def test_no_warning_of_views_that_are_not_meant(make_trainer):
    trainer = trainer_of(make_trainer, (FIRST, SECOND), WHEN)
    assert "no_views" not in trainer.monitor.signs
