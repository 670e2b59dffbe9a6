# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Greedy answers of models to sums that no run has trained on, and what they still know of English:

python -m benchmarks score demo/output/sd_zero/3-train demo/models/smollm2-135m --problems 256

Each model gets a line of JSON: share of right sums with its 95 % interval (Wilson), mean length of the answers, share
of answers that were cut, and nats for each token of a text.
"""

import argparse
import json
import math
import random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_opsd.examples import tasks


BATCH = 64


def unseen_sums(count: int, seed: int = 1) -> list[tuple[str, int]]:
    """Questions with their sums, of pairs that are in neither split of the task, in either order."""
    questions = {row["prompt"][0]["content"] for rows in tasks.addition_task().values() for row in rows}

    def ask(a: int, b: int) -> str:
        return f"What is {a} + {b}? Answer in one short sentence."

    pairs = [(a, b) for a in range(10, 100) for b in range(a, 100) if not {ask(a, b), ask(b, a)} & questions]
    return [(ask(a, b), a + b) for a, b in random.Random(seed).sample(pairs, count)]


def interval(rate: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate."""
    z = 1.96
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return middle - half, middle + half


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[str], most: int
) -> list[list[int]]:
    """Token ids of greedy answers, up to the end token."""
    written: list[list[int]] = []
    for start in range(0, len(questions), BATCH):
        texts = [
            tokenizer.apply_chat_template(tasks.user(one), tokenize=False, add_generation_prompt=True)
            for one in questions[start : start + BATCH]
        ]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.no_grad():
            output = model.generate(**batch, max_new_tokens=most, do_sample=False)
        for ids in output[:, batch["input_ids"].shape[1] :].tolist():
            end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
            written.append(ids[:end])
    return written


def nats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, most: int = 1024) -> float:
    """Mean negative log-likelihood of the tokens of a text."""
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][:most]])
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item()


def score(path: str, problems: int, most: int, text: str) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    pairs = unseen_sums(problems)
    written = answers(model, tokenizer, [question for question, _ in pairs], most)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
    rate = sum(tasks.correct_sum(texts, [total for _, total in pairs])) / problems
    return {
        "model": path,
        "right": rate,
        "interval": [round(one, 3) for one in interval(rate, problems)],
        "length": sum(map(len, written)) / problems,
        "cut": sum(ids[-1] != tokenizer.eos_token_id for ids in written) / problems,
        "nats": nats(model, tokenizer, text),
        "answers": texts[:3],
    }


def main(args: argparse.Namespace) -> None:
    text = args.text.read_text(encoding="utf-8")
    for path in args.models:
        print(json.dumps(score(path, args.problems, args.max_tokens, text)), flush=True)
