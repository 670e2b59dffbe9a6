# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""RLTF-FM: the student learns to write the critic's words, beside GRPO on first and second turns."""

import pytest
import torch

from batches import batch_of
from turn_cases import by_role, check_gradients, numbered, row_loss


TURNS = {"slots": ["first", "second", "feedback"], "source": {"fixed": {"context": "The sign is wrong."}}}


def right(completion_ids, **_):
    """A reward that differs between texts; none is a success."""
    return [0.9 * (len(ids) % 3) / 2 for ids in completion_ids]


def trainer_of(make_trainer, turns=TURNS, **options):
    size = len(turns["slots"])
    trainer = make_trainer(
        method="rltf_fm", turns=turns, reward_funcs=right, num_generations=4 * size, shuffle_dataset=False,
        per_device_train_batch_size=8 * size, max_steps=1, **options,
    )  # fmt: skip
    numbered(trainer)
    return trainer


@pytest.mark.parametrize("slots", [["first", "second", "feedback"], ["first", "feedback"]])
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_the_gradient_is_that_of_the_formulas(make_trainer, slots, weight):
    """In float64, row by row; that of a `feedback` row is lambda times the cross-entropy's."""
    options = {"feedback": weight, "gamma": 0.5}
    trainer = trainer_of(make_trainer, {**TURNS, "slots": slots}, method_options=options)
    batch = batch_of(trainer)
    assert by_role(trainer) == slots * 8
    rollouts, values = trainer.collected.rollouts, {}
    for prompt in range(2):
        group = [one for one in rollouts if one.group == prompt]
        first, second = ([one.total for one in group if one.role == role] for role in ("first", "second"))
        returns = [a + 0.5 * b for a, b in zip(first, second or [0.0] * 4, strict=True)]
        for one in group:
            unit = one.attempt.index - 4 * prompt
            if one.role == "first":
                values[one.index] = returns[unit] - sum(returns) / 4
            if one.role == "second":
                values[one.index] = one.total - sum(second) / 4
            if one.role == "feedback":
                values[one.index] = weight
    expected = torch.tensor([values[i] for i in batch["distillation"].index.tolist()]).unsqueeze(1)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(batch["advantages"].unsqueeze(1), expected.float(), rtol=1e-5, atol=1e-6)
    check_gradients(trainer, batch, row_loss(trainer, batch, expected)[1])


def test_without_a_weight_feedback_moves_nothing(make_trainer):
    """With equal rewards, the rest of the gradient is 0 too."""
    trainer = make_trainer(
        method="rltf_fm", method_options={"feedback": 0.0}, turns={**TURNS, "slots": ["first", "feedback"]},
        reward_funcs=lambda completions, **_: [0.5] * len(completions), num_generations=4, max_steps=1,
    )  # fmt: skip
    numbered(trainer)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] == 0.0


def test_feedback_becomes_likelier(make_trainer):
    """And an ordinary first turn is no part of that: the critic's words are trained under the request for them."""
    trainer = trainer_of(make_trainer, method_options={"feedback": 1.0})
    batch_of(trainer)
    (row,) = [one for one in trainer.collected.rollouts if one.role == "feedback"][:1]
    ids = torch.tensor([row.prompt_ids + row.completion_ids])

    def logp():
        with torch.no_grad():
            logps = trainer.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return logps.gather(1, ids[0, 1:].unsqueeze(1))[len(row.prompt_ids) - 1 :].sum().item()

    before = logp()
    trainer._buffered_inputs = None
    trainer.train()
    assert logp() > before + 1
