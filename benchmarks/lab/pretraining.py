# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Tokenizer, weights and pre-training of the lab model."""

import random
import time
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.lab.contexts import Example, example


SPECIAL = ["<pad>", "<eos>", "<unk>", "<user>", "<bot>", "<sys>"]
CHARACTERS = "0123456789+*=>;:,.? \nabcdefghijklmnopqrstuvwxyz"
TEMPLATE = (
    "{% for message in messages %}{{ {'user': '<user>', 'assistant': '<bot>', 'system': '<sys>'}[message['role']] }}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
LENGTH = 512  # most positions
STEPS, ROWS, RATE = 3000, 32, 2e-3
SORTED = 8  # batches whose rows are sorted by length together, so that little is padded


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, in lower case."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=TEMPLATE,
        additional_special_tokens=["<user>", "<bot>", "<sys>"], model_max_length=LENGTH, padding_side="left",
    )  # fmt: skip


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=LENGTH, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, shown: Example) -> tuple[list[int], int]:
    """Token ids of an example, and how many of them are not trained."""
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"]
           for part in (f"<user>{shown.user}<bot>{shown.begun}", f"{shown.answer}<eos>")]  # fmt: skip
    return ids[0] + ids[1], len(ids[0])


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and labels, `(B, T)` each, without end."""
    rng = random.Random(seed)
    while True:
        rows = sorted((encode(tokenizer, example(rng)) for _ in range(SORTED * ROWS)), key=lambda row: len(row[0]))
        starts = list(range(0, len(rows), ROWS))
        rng.shuffle(starts)
        for start in starts:
            yield padded(rows[start : start + ROWS])


def padded(rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, `(B, T)` each, of encoded examples, padded on the right: no real token sees it."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([[-100] * read + ids[read:] + [-100] * (width - len(ids)) for ids, read in rows])
    return ids, labels


def pretrain(seed: int = 0, steps: int = STEPS, every: int = 500) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """
    The lab model, trained from nothing on one thread. The same seed and steps give the same weights, to the bit.

    Args:
        seed (`int`): Of weights and texts.
        steps (`int`): Optimizer steps.
        every (`int`): Steps from one line of progress to the next.
    """
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    start = time.monotonic()
    for step, (ids, labels) in zip(range(1, steps + 1), batches(tokenizer, seed), strict=False):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % every == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.monotonic() - start:.0f} s", flush=True)
    return model.eval(), tokenizer
