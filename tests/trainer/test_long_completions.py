# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Long completions: what a loss holds of the vocabulary's size does not grow with their length.

Counted over forward and backward of a whole micro-batch, at reduced size: bytes of live tensors whose last dimension is
the vocabulary. A run with completions of 16k tokens differs by the number of chunks.
"""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny
from batches import batch_of
from conftest import length_reward
from runs import SAMPLED


VOCABULARY = 1031  # no other size of the model
CHUNK = 32
MODES = {
    "pure": {},
    "mixed": {"reward_funcs": length_reward},
    "sampled": {"reward_funcs": length_reward, **SAMPLED},
    "top-k": {"distillation_mode": "topk_logits", "distillation_topk": 8},
}


class Logits(TorchDispatchMode):
    """Most bytes of tensors `(..., V)` that were alive at a time."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor) and one.dim() > 1 and one.shape[-1] == VOCABULARY:
                storage = one.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def peak(make_trainer, tokenizer, length, chunk=CHUNK, **options):
    """Most bytes of logits of a micro-batch with two completions of `length` tokens."""

    def answers(prompts, trainer):
        prompt_ids = trainer._tokenize_prompts(prompts)[0]
        ids = [[3 + (7 * row + 11 * i) % 250 for i in range(length)] for row in range(len(prompts))]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[0.0] * length for _ in ids]}

    model = tiny.model(tokenizer, vocab_size=VOCABULARY, max_position_embeddings=2048)
    sizes = {"per_device_train_batch_size": 2, "max_completion_length": length, "distillation_chunk_size": chunk}
    trainer = make_trainer(model, rollout_func=answers, privileged_source={"fixed": "Be brief."}, **sizes, **options)
    inputs = batch_of(trainer)
    assert inputs["completion_ids"].shape == (2, length)
    with Logits() as logits:
        trainer.compute_loss(trainer.model, inputs).backward()
    return logits.peak


@pytest.mark.parametrize("mode", MODES)
def test_logits_of_a_chunk_whatever_the_length(make_trainer, tokenizer, mode):
    short, long = (peak(make_trainer, tokenizer, length, **MODES[mode]) for length in (128, 512))
    assert short == long < 16 * CHUNK * VOCABULARY * 4 < 2 * 512 * VOCABULARY * 4


def test_logits_of_all_tokens_would_be_noticed(make_trainer, tokenizer):
    """With one chunk for all tokens the peak grows as they do."""
    short, long = (peak(make_trainer, tokenizer, length, chunk=2 * length) for length in (64, 512))
    assert short >= 2 * 64 * VOCABULARY * 4 and long > 2.5 * short
