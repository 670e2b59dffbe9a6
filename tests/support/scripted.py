# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Rollouts with known texts and a reward, for sources that look at what was written and whether it was right."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from datasets import Dataset


SUMS = {"1 + 1?": "2", "2 + 3?": "5"}


def sums(**columns: list) -> Dataset:
    """One row for each of the two sums, in chat form, with further columns."""
    rows = [{"prompt": [{"role": "user", "content": task}], "answer": answer} for task, answer in SUMS.items()]
    return Dataset.from_list([{**row, **{k: v[i] for k, v in columns.items()}} for i, row in enumerate(rows)])


def right(completions: list, answer: list, **kwargs: Any) -> list[float]:
    """1 where a completion ends in the answer."""
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [float(text.endswith(wanted)) for text, wanted in zip(texts, answer, strict=True)]


def writing(*texts: list[str], end: str = "<|im_end|>") -> Callable[..., dict[str, Any]]:
    """
    A `rollout_func` under which the first prompt of a batch is answered by the first list of texts, one for each of its
    rollouts, the second one by the second, and so on.
    """

    def rollout(prompts: list, trainer: Any) -> dict[str, Any]:
        tokenizer, seen = trainer.processing_class, Counter()
        order = list(dict.fromkeys(map(str, prompts)))
        ids = []
        for prompt in map(str, prompts):
            text = texts[order.index(prompt)][seen[prompt]]
            seen[prompt] += 1
            ids.append(tokenizer(text + end)["input_ids"])
        return {
            "prompt_ids": trainer._tokenize_prompts(prompts)[0],
            "completion_ids": ids,
            "logprobs": [[0.0] * len(one) for one in ids],
        }

    return rollout


def long_answers(prompts, trainer):
    """Eight tokens each, that depend on the prompt alone."""
    prompt_ids = trainer._tokenize_prompts(prompts)[0]
    ids = [[(3 + 7 * sum(prompt) + 11 * i) % 250 + 3 for i in range(8)] for prompt in prompt_ids]
    return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[0.0] * 8 for _ in ids]}


def tool_answers(prompts, trainer):
    """Two turns with a tool's result between them."""
    tokenizer = trainer.processing_class
    prompt_ids = trainer._tokenize_prompts(prompts)[0]
    first = tokenizer("call it<|im_end|>")["input_ids"]
    result = tokenizer("\n<|im_start|>tool\nno such key<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    second = tokenizer("sorry!<|im_end|>")["input_ids"]
    ids = [first + result + second for _ in prompts]
    mask = [[1] * len(first) + [0] * len(result) + [1] * len(second) for _ in prompts]
    logps = [[0.0] * len(row) for row in ids]
    return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": logps, "env_mask": mask}


def saying(text):
    """An author that answers every prompt alike, and keeps the prompts."""

    def author(prompts, rollouts):
        author.prompts += prompts
        author.rollouts += rollouts
        return [text] * len(prompts)

    author.prompts, author.rollouts = [], []
    return author
