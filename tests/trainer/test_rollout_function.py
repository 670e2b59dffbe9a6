# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Output of a `rollout_func` that TRL could not read is refused by name."""

import pytest

from batches import batch_of
from scripted import long_answers


@pytest.mark.parametrize("name", ["completion_ids", "prompt_ids"])
@pytest.mark.parametrize("row", [0, 3])
def test_nothing_where_tokens_are_needed(make_trainer, rows, name, row):
    def rollout(prompts, trainer):
        output = long_answers(prompts, trainer)
        output[name] = [[] if i == row else ids for i, ids in enumerate(output[name])]
        return output

    trainer = make_trainer(rollout_func=rollout, shuffle_dataset=False)
    with pytest.raises(ValueError, match=f"`rollout_func` returned empty `{name}` for the row with prompt") as caught:
        trainer.train()
    assert rows[row]["prompt"][0]["content"] in str(caught.value) and "eos_token_id" in str(caught.value)


def test_another_number_of_completions(make_trainer):
    def rollout(prompts, trainer):
        output = long_answers(prompts, trainer)
        return {**output, "completion_ids": output["completion_ids"][:-1]}

    with pytest.raises(ValueError, match="`rollout_func` returned 3 `completion_ids` for 4 prompts"):
        make_trainer(rollout_func=rollout).train()


def test_keys_that_are_missing_are_named(make_trainer):
    trainer = make_trainer(rollout_func=lambda prompts, trainer: {"prompt_ids": [[1]] * len(prompts)})
    with pytest.raises(ValueError, match=r"must return keys \['completion_ids', 'logprobs'\]"):
        batch_of(trainer)


def test_a_completion_of_its_end_alone_is_learnt_from(make_trainer, tokenizer):
    def rollout(prompts, trainer):
        output = long_answers(prompts, trainer)
        return {**output, "completion_ids": [[tokenizer.eos_token_id] for _ in prompts], "logprobs": None}

    trainer = make_trainer(rollout_func=rollout, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["completions/max_length"] == 1
    assert trainer.state.log_history[0]["self_distillation/divergence"] > 0
