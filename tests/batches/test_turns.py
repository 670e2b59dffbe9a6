# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Turns of the tokens of a micro-batch: those of the rollouts, wherever their rows go."""

import torch

from agents import AGENT, SCRIPTS, agent_model, agent_tokenizer, follow_scripts, multiply
from batches import batch_of
from conftest import length_reward
from trl_opsd.batches.distillation_batch import turn_numbers
from trl_opsd.losses import at_tokens, turn_sums
from trl_opsd.methods import Method


def test_runs_of_model_tokens_are_turns():
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0, 0, 0], [1] * 8, [0] * 8])
    assert turn_numbers(mask).tolist() == [[0, 0, -1, -1, 1, -1, 2, 2], [-1, 0, *[-1] * 6], [0] * 8, [-1] * 8]


def test_sums_and_means_by_turn():
    turns = torch.tensor([[0, 0, -1, 1], [0, 1, 1, 2]])
    values, mask = torch.tensor([[1.0, 2.0, 9.0, 4.0], [5.0, 6.0, 7.0, 8.0]]), torch.tensor([[1.0, 0, 1, 1], [1] * 4])
    assert turn_sums(values, turns).tolist() == [[3.0, 4.0, 0.0], [5.0, 13.0, 8.0]]
    means = turn_sums(values * mask, turns) / turn_sums(mask, turns).clamp(min=1)
    assert at_tokens(means, turns).tolist() == [[1.0, 1.0, 0.0, 4.0], [5.0, 6.5, 6.5, 8.0]]
    assert turn_sums(values, torch.full_like(turns, -1)).tolist() == [[0.0], [0.0]]
    assert turn_sums(values[:, :0], turns[:, :0]).shape == (2, 1)


def agent(make_trainer, **options):
    """Rollouts of four, three, two and one turns, in batches that are sorted by length."""
    given = {
        "tools": [multiply], "processing_class": agent_tokenizer(), "reward_funcs": length_reward,
        "num_generations": 4, "privileged_source": {"fixed": {"context": "Multiply."}}, "beta": 0.0, **AGENT,
    }  # fmt: skip
    trainer = make_trainer(agent_model(), **{**given, **options})
    follow_scripts(trainer, SCRIPTS)
    return trainer


def turns_of_rollouts(trainer, batch):
    """As `Rollout.turns` has them, for each row of a micro-batch."""
    rollouts = {rollout.index: rollout for rollout in trainer.collected.rollouts}
    found = torch.full_like(batch.turns, -1)
    for row, index in enumerate(batch.index.tolist()):
        for number, turn in enumerate(rollouts[index].turns):
            found[row, turn.start : turn.end] = number
    return found


def test_they_are_those_of_the_rollouts(make_trainer):
    """Rows are dealt anew to micro-batches by length, and cut to the longest."""
    trainer = agent(make_trainer, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    batch_of(trainer)
    most = []
    for inputs in trainer._buffered_inputs:
        batch = inputs["distillation"]
        assert torch.equal(batch.turns, turns_of_rollouts(trainer, batch))
        most += (batch.turns.amax(1) + 1).tolist()
    assert sorted(most) == sorted(len(script) for script in SCRIPTS * 2)


def test_in_an_evaluation(make_trainer, rows):
    from datasets import Dataset

    trainer = agent(make_trainer, eval_dataset=Dataset.from_list(rows[:3]), per_device_eval_batch_size=4)
    seen, request = [], trainer.objective.vocabulary_request

    def observed(model, batch, *rest):
        seen.append(torch.equal(batch.turns, turns_of_rollouts(trainer, batch)) and batch.turns.max().item())
        return request(model, batch, *rest)

    trainer.objective.vocabulary_request = observed
    trainer.evaluate()
    assert seen == [3, 3, 3], "and not False"


SEEN = []
WATCHER = Method(
    "W", token_weight=lambda step: lambda stats: SEEN.append(stats.turns.tolist()) or stats.turns * 0.5 + 1
)


def test_a_token_weight_reads_them(make_trainer):
    trainer = agent(make_trainer, method="test_turns.WATCHER", policy_weight=0.0)
    inputs = batch_of(trainer)
    SEEN.clear()
    trainer.compute_loss(trainer.model, inputs)
    batch = inputs["distillation"]
    assert [turn for tile in SEEN for turn in tile] == batch.turns.flatten()[batch.token_index].tolist()
    assert {turn for tile in SEEN for turn in tile} == {0, 1, 2, 3}


def test_a_resumed_run_within_a_generation_batch(make_trainer, tmp_path):
    """Tokens of each turn have a weight of their own: the weights end up the same only if turns come back."""
    buffered = {
        "method": "test_turns.WATCHER", "policy_weight": 0.0, "steps_per_generation": 2, "num_iterations": 2,
        "save_strategy": "steps", "save_steps": 1, "max_steps": 4,
    }  # fmt: skip
    whole = agent(make_trainer, output_dir=str(tmp_path / "whole"), **buffered)
    whole.train()
    again = agent(make_trainer, output_dir=str(tmp_path / "again"), **buffered)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    ours, theirs = dict(again.model.named_parameters()), dict(whole.model.named_parameters())
    assert all(torch.equal(one, theirs[name]) for name, one in ours.items())
