# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""VPD: the reverse KL on first turns, and a reader of the feedback that learns which answers were right."""

import pytest
import torch

from batches import batch_of
from dense import dense_logps
from runs import assert_same_run, interrupted
from turn_cases import by_role, check_gradients, numbered, row_loss


FIXED = {"fixed": {"context": "Mind the sign.", "place": "after_user"}}
TURNS = {"slots": ["first", "reread"], "source": FIXED}


def even(completion_ids, **_):
    return [float(len(ids) % 2 == 0) for ids in completion_ids]


def trainer_of(make_trainer, turns=TURNS, **options):
    trainer = make_trainer(
        method="vpd", turns=turns, reward_funcs=even, shuffle_dataset=False,
        **{"num_generations": 4, "per_device_train_batch_size": 8, **options},
    )  # fmt: skip
    numbered(trainer)
    return trainer


def ratio_of(trainer, one, beta):
    """beta (log q - log p) of a reread row's text, in float64."""
    own, bare = (
        dense_logps(trainer.model, ids, one.completion_ids) for ids in (one.prompt_ids, one.attempt.prompt_ids)
    )
    return beta * (own - bare).sum()


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("delta", [(0.0, 0.0), (0.8, -0.2)])
def test_the_gradient_is_that_of_the_losses(make_trainer, beta, delta):
    """BCO's loss of rows that are read again, a mean over them, by autograd in float64; and the gap of first turns."""
    trainer = trainer_of(make_trainer, method_options={"beta": beta})
    trainer.method.schedule_state |= dict(zip(("right", "wrong"), delta, strict=True))
    batch = batch_of(trainer)
    rollouts, index = trainer.collected.rollouts, batch["distillation"].index.tolist()
    assert by_role(trainer) == ["first", "reread"] * 4
    assert len({one.success for one in rollouts if one.role == "reread"}) == 2
    tokens = sum(len(one.completion_ids) for one in rollouts)
    firsts = sum(len(one.completion_ids) for one in rollouts if one.role == "first")
    rows = iter([rollouts[i] for i in index])
    contexts = {one.attempt.index: one.prompt_ids for one in rollouts if one.role == "reread"}

    def score(logps, own, mask):
        one = next(rows)
        if one.role == "first":
            gap = dense_logps(trainer.model, contexts[one.attempt.index], one.completion_ids) - logps.detach()
            return -(gap * logps).sum() * tokens / firsts
        z = 1.0 if one.success else -1.0
        bare = dense_logps(trainer.model, one.attempt.prompt_ids, one.completion_ids)
        ratio = beta * (logps - bare).sum()
        return -torch.nn.functional.logsigmoid(z * (ratio - sum(delta) / 2)) * tokens / 4

    _, expected = row_loss(trainer, batch, batch["advantages"].unsqueeze(1), score)
    check_gradients(trainer, batch, expected)


def test_the_middle_follows_the_rows_that_are_read_again(make_trainer):
    """By the mean of each class over a step; steps without such rows leave it."""
    trainer = trainer_of(make_trainer, {**TURNS, "every": 2}, max_steps=4, method_options={"momentum": 0.75})
    means, sample = [], trainer._generate_and_score_completions

    def recorded(inputs):
        output = sample(inputs)
        again = [one for one in trainer.collected.rollouts if one.role == "reread"]
        values = {name: [float(ratio_of(trainer, one, 0.1)) for one in again if one.success == kind]
                  for name, kind in (("right", True), ("wrong", False))}  # fmt: skip
        means.append({name: sum(own) / len(own) for name, own in values.items() if own})
        return output

    trainer._generate_and_score_completions = recorded
    trainer.train()
    assert [bool(one) for one in means] == [False, True, False, True]
    expected, seen = {"right": 0.0, "wrong": 0.0}, set()
    for one in means:
        for name, value in one.items():
            kept = 0.75 if name in seen else 0.0
            expected[name] = kept * expected[name] + (1 - kept) * value
            seen.add(name)
    assert seen == {"right", "wrong"}
    state = trainer.method.schedule_state
    assert {name: state[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    log = trainer.state.log_history[1]
    assert log["self_distillation/vpd/right"] == pytest.approx(means[1]["right"], abs=1e-4)


def test_a_small_beta_leaves_the_reader_alone(make_trainer):
    trainer = trainer_of(make_trainer, method_options={"beta": 1e-8})
    batch = batch_of(trainer)
    roles = [trainer.collected.rollouts[i].role for i in batch["distillation"].index.tolist()]
    stats = {}
    make = trainer.objective.sampled_advantages
    trainer.objective.sampled_advantages = lambda *given: stats.setdefault("made", make(*given))
    trainer._compute_loss(trainer.model, batch)
    for row, role in zip(stats["made"], roles, strict=True):
        assert (row.abs().max() < 1e-6) == (role == "reread")


def test_without_a_context_the_reader_gets_half_of_beta(make_trainer):
    """r is 0 then; and there is no gap to pull first turns by."""
    trainer = trainer_of(make_trainer, {**TURNS, "source": "bare"}, method_options={"beta": 0.4})
    batch = batch_of(trainer)
    rollouts, index = trainer.collected.rollouts, batch["distillation"].index.tolist()
    tokens = sum(len(one.completion_ids) for one in rollouts)
    signs = [0.0 if rollouts[i].role == "first" else 2.0 * rollouts[i].success - 1 for i in index]
    trained = torch.tensor([[sign * 0.4 / 2 * tokens / 4] for sign in signs])
    check_gradients(trainer, batch, row_loss(trainer, batch, trained)[1])


def test_without_e_steps_it_is_reverse_kl_self_distillation(make_trainer):
    """In sampled tokens, given the same texts; the source of the turns is asked all the same."""
    options = {"num_generations": 4, "per_device_train_batch_size": 8, "optim": "sgd", "max_steps": 2}
    texts = [[3 + (i * 7 + j * 11) % 250 for j in range(2 + i % 5)] + [2] for i in range(8)]
    plain = make_trainer(
        **options, distillation_mode="sampled_token", distillation_alpha=1.0, teacher_model_kind="live",
        privileged_source=FIXED, shuffle_dataset=False,
    )  # fmt: skip
    plain._generate_single_turn = lambda ids, *_: (texts, None)
    plain.train()
    trainer = trainer_of(make_trainer, {**TURNS, "every": 3}, **options)
    calls = []

    def single_turn(ids, *_):
        calls.append(len(ids))
        return texts[(len(calls) - 1) % 2 :: 2], None

    trainer._generate_single_turn = single_turn
    trainer.train()
    assert calls == [4, 4] * 2 and set(by_role(trainer)) == {"first"}
    assert plain.state.log_history[0]["grad_norm"] > 0
    for one, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_resumed_run_is_the_uninterrupted_one(make_trainer, tmp_path):
    options = {"turns": {**TURNS, "every": 2}, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    options |= {"method": "vpd", "reward_funcs": even, "num_generations": 4, "per_device_train_batch_size": 8}
    whole = make_trainer(**options, output_dir=str(tmp_path / "whole"))
    whole.train()
    interrupted(make_trainer, 2, **options, output_dir=str(tmp_path / "killed"))
    resumed = make_trainer(**options, output_dir=str(tmp_path / "killed"))
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)
    assert whole.method.schedule_state == resumed.method.schedule_state != {"right": 0.0, "wrong": 0.0}
