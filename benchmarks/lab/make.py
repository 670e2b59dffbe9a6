# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Makes the lab model, and shows what it does with every kind of context on questions that it never saw:

python -m benchmarks lab
python -m benchmarks lab --problems 256 --table

The model goes into demo/lab/model. It is for experiments on methods: small, quick and fully known, and no model of
language.
"""

import argparse
import itertools
import random
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.lab import contexts as forms
from benchmarks.lab.pretraining import pretrain
from benchmarks.lab.scores import answers
from benchmarks.lab.tasks import TASKS, Task, correct, feedback_on, questions, result_of
from benchmarks.report import table


def held_out(task: Task, count: int, size: int | None = None, part: int = 0) -> list[str]:
    """
    Different questions of one part, always the same ones.

    Args:
        task ([`Task`]): The task.
        count (`int`): How many.
        size (`int`, *optional*): Difficulty, by default that of the task.
        part (`int`): 0 for held-out questions, 1 for those of experiments.

    Raises:
        ValueError: If the task has not so many.
    """
    found: dict[str, None] = {}
    for question in itertools.islice(questions(task, size or task.size, part, random.Random(part)), 50 * count):
        found[question] = None
        if len(found) == count:
            return list(found)
    raise ValueError(f"The task {task.name!r} has {len(found)} questions of that size and part, and not {count}.")


def prompts_by_context(task: Task, asked: list[str]) -> dict[str, list[str]]:
    """Messages to the model by the kind of context in them: true, wrong and unrelated ones."""
    rng = random.Random(0)
    right = [task.worked(question) for question in asked]
    wrong = [task.careless(question, rng, 0.0) for question in asked]
    unrelated = right[1:] + right[:1]
    if other := forms.UNRELATED_TASK.get(task.name):
        unrelated = [TASKS[other].worked(question) for question in held_out(TASKS[other], len(asked))]
    other_rule = next(one.rule for one in TASKS.values() if one != task)
    said = [forms.SAID.format(text) for text in wrong]
    notes = [forms.FEEDBACK.format(feedback_on(*one)) for one in zip(wrong, asked, strict=True)]
    parts = {
        "none": [""] * len(asked),
        "answer": [forms.ANSWER.format(result_of(text)) for text in right],
        "solution": [forms.SOLUTION.format(text) for text in right],
        "sibling": [forms.OTHER.format(text) for text in right],
        "rule": [forms.RULE.format(task.rule)] * len(asked),
        "feedback on an attempt": [one + note for one, note in zip(said, notes, strict=True)],
        "attempt and solution": [one + forms.SOLUTION.format(text) for one, text in zip(said, right, strict=True)],
        "wrong answer": [forms.ANSWER.format(result_of(text)) for text in wrong],
        "wrong solution": [forms.SOLUTION.format(text) for text in wrong],
        "solution of another question": [forms.SOLUTION.format(text) for text in unrelated],
        "rule of another task": [forms.RULE.format(other_rule)] * len(asked),
    }
    return {name: [q + part for q, part in zip(asked, own, strict=True)] for name, own in parts.items()}


def abilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: int) -> str:
    """Table of greedy answers by task and context, with the sampled ones of bare questions."""
    rows = []
    for task in TASKS.values():
        asked = held_out(task, problems)
        for name, users in prompts_by_context(task, asked).items():
            texts = answers(model, tokenizer, users)
            scores = [correct(texts, asked)]
            scores.append([float(feedback_on(*one) == "all right") for one in zip(texts, asked, strict=True)])
            if name == "none":
                scores.append(correct(answers(model, tokenizer, users, sample=True), asked))
            shown = [f"{sum(one) / problems:.1%}" for one in scores]
            rows.append([task.name, name, *shown, *[""] * (3 - len(shown)), f"`{texts[0]}`"])
    return table(["task", "context", "right", "every step right", "right, sampled", "an answer"], rows)


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def main(args: argparse.Namespace) -> None:
    if not args.table:
        model, tokenizer = pretrain(args.seed, args.steps)
        model.save_pretrained(args.output)
        tokenizer.save_pretrained(args.output)
        print(f"The model is in {args.output}.")
    print(abilities(*load(args.output), args.problems))
