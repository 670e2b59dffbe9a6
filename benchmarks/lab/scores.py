# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Answers of the lab model to prompts, and what they score."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


MOST = 64  # tokens of an answer
BATCH = 256


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    users: Sequence[str],
    sample: bool = False,
    most: int = MOST,
    seed: int = 0,
) -> list[str]:
    """
    Answers to messages of a user, greedy or sampled at temperature 1. The state of torch's random numbers and the
    model's mode stay as they were.

    Args:
        model, tokenizer: Of the lab.
        users (`Sequence[str]`): The messages.
        sample (`bool`): Whether to sample.
        most (`int`): Most tokens of an answer.
        seed (`int`): Of the sampling.
    """
    texts: list[str] = []
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(users), BATCH):
            prompts = [f"<user>{user}<bot>" for user in users[start : start + BATCH]]
            inputs = tokenizer(
                prompts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False,
                return_token_type_ids=False,
            ).to(model.device)  # fmt: skip
            how = {"do_sample": True, "top_k": 0} if sample else {"do_sample": False}
            ids = model.generate(**inputs, max_new_tokens=most, **how)
            texts += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train(was_training)
    return texts
