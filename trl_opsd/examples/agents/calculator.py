# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A calculator that takes nothing but the JSON that it asks for, and word problems for it."""

import json
import random
from typing import Any

from trl_opsd.rollouts.rollout import Rollout


Row = dict[str, Any]

OPERATIONS = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
}
QUESTIONS = {
    "add": ("What is {a} plus {b}?", "Add {a} and {b}.", "A coat costs ${a} and a hat ${b}. What do both cost?"),
    "subtract": (
        "What is {a} minus {b}?",
        "How much is {a} less {b}?",
        "Of {a} apples {b} are gone. How many are left?",
    ),
    "multiply": ("What is {a} times {b}?", "Multiply {a} by {b}.", "{a} boxes hold {b} eggs each. How many eggs?"),
    "divide": ("What is {a} divided by {b}?", "Divide {a} by {b}.", "Share {a} sweets among {b} children."),
}
EXAMPLES = (("What is 6 times 7?", "multiply", 6, 7), ("Add 31 and 12.", "add", 31, 12))
TRAIN_PROBLEMS, TEST_PROBLEMS = 512, 64


def calculate(operation: str, a: float, b: float) -> str:
    """
    Calculate with two numbers.

    Args:
        operation: "add", "subtract", "multiply" or "divide".
        a: First number.
        b: Second number.
    """
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise ValueError(f"Unknown operation {operation!r}.")
    for name, value in (("a", a), ("b", b)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} is {value!r}: it must be a JSON number.")
    return shown(OPERATIONS[operation](a, b))


def shown(value: float) -> str:
    """A number without needless digits."""
    return f"{value:.10g}"


def right_result(completions: list[list[Row]], answer: list[str], **kwargs: Any) -> list[float]:
    """1 where the calculator gave the right number, as TRL's reward."""
    return [float(any(said == right for said in results(one))) for one, right in zip(completions, answer, strict=True)]


def results(completion: list[Row]) -> list[str]:
    return [message["content"] for message in completion if message["role"] == "tool"]


def problem(rng: random.Random) -> Row:
    operation = rng.choice(list(OPERATIONS))
    a, b = rng.randint(10, 99), rng.randint(2, 9)
    a = a * b if operation == "divide" else a
    question = rng.choice(QUESTIONS[operation]).format(a=a, b=b)
    return {"prompt": prompt(question), "operation": operation, "answer": shown(OPERATIONS[operation](a, b))}


def due_call(rollout: Rollout) -> list[tuple[int, str]]:
    """The turns whose call failed, each with what the row says of the right one: a function for `turn_hint`."""
    hint = f'The tool is named "calculate", and the operation is "{rollout.row["operation"]}".'
    return [(number, hint) for number, turn in enumerate(rollout.turns) if turn.errors]


def prompt(question: str) -> list[Row]:
    """The question after two that were answered by calls, in text: a column of messages has no room for calls."""
    messages = []
    for asked, operation, a, b in EXAMPLES:
        call = {"name": "calculate", "arguments": {"operation": operation, "a": a, "b": b}}
        text = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": text}]
    return [*messages, {"role": "user", "content": question}]


def task(seed: int = 0) -> dict[str, list[Row]]:
    """Problems of two splits that share no question."""
    rng = random.Random(seed)
    rows: dict[str, Row] = {}
    while len(rows) < TRAIN_PROBLEMS + TEST_PROBLEMS:
        row = problem(rng)
        rows[row["prompt"][-1]["content"]] = row
    problems = list(rows.values())
    return {"train": problems[TEST_PROBLEMS:], "test": problems[:TEST_PROBLEMS]}
