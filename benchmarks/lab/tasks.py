# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Tasks of the lab model: questions, answers that show their work, and slips that a careless solver makes.

A worked answer is steps, a semicolon, the result and a full stop: `347+586?` has `7+6+0=13,4+8+1=13,3+5+1=9;933.` Each
task has one operation that is easily forgotten: a carry, the repeat of a digit, the way round from the last letter. The
lab model has learnt to forget it, so that its likeliest answer is wrong wherever the operation is due.
"""

import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


LETTERS = "abcde"  # of the rewriting task; the last one goes round to the first
PARTS = 8  # of all questions: one is held out, one for experiments, the rest for the pre-training

Careful = Callable[[], bool]  # asked where the operation is due: whether it is done


@dataclass(frozen=True)
class Task:
    """
    Task of the lab model.

    Args:
        name (`str`): Name.
        rule (`str`): What a careless solver forgets, in words: a context that all rows share.
        size (`int`): Default difficulty: digits or letters of a question.
        sizes (`tuple[int, ...]`): Difficulties that the pre-training has shown.
        ask (`Callable`): Draws a question of a size.
        solve (`Callable`): From a question and an answer to where the operation is due, to steps and result.
    """

    name: str
    rule: str
    size: int
    sizes: tuple[int, ...]
    ask: Callable[[random.Random, int], str]
    solve: Callable[[str, Careful], tuple[list[str], str]]

    def worked(self, question: str, careful: Careful = lambda: True) -> str:
        steps, result = self.solve(question, careful)
        return f"{','.join(steps)};{result}."

    def careless(self, question: str, rng: random.Random, kept: float) -> str:
        """Worked answer of a solver that does what is due with the probability `kept`."""
        return self.worked(question, lambda: rng.random() < kept)


def _number(rng: random.Random, digits: int) -> int:
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def _ask_sum(rng: random.Random, size: int) -> str:
    return f"{_number(rng, size)}+{_number(rng, size)}?"


def _solve_sum(question: str, careful: Careful) -> tuple[list[str], str]:
    one, other = question.rstrip("?").split("+")
    steps, digits, carry = [], "", 0
    for a, b in zip(reversed(one), reversed(other), strict=True):
        total = int(a) + int(b) + carry
        steps.append(f"{a}+{b}+{carry}={total}")
        digits = f"{total % 10}{digits}"
        last = len(steps) == len(one)
        carry = total // 10 if last or total < 10 or careful() else 0
    return steps, f"{carry or ''}{digits}"


def _ask_product(rng: random.Random, size: int) -> str:
    return f"{_number(rng, size)}*{rng.randint(2, 4)}?"


def _solve_product(question: str, careful: Careful) -> tuple[list[str], str]:
    number, factor = question.rstrip("?").split("*")
    steps, digits, carry = [], "", 0
    for a in reversed(number):
        product = int(a) * int(factor)
        total = product + carry
        steps.append(f"{a}*{factor}={product}+{carry}={total}")
        digits = f"{total % 10}{digits}"
        last = len(steps) == len(number)
        carry = total // 10 if last or total < 10 or careful() else 0
    return steps, f"{carry or ''}{digits}"


def _ask_sort(rng: random.Random, size: int) -> str:
    return f"sort {''.join(rng.choices('0123456789', k=size))}?"


def _solve_sort(question: str, careful: Careful) -> tuple[list[str], str]:
    counts = Counter(question[len("sort ") : -1])
    found = {digit: count if count == 1 or careful() else 1 for digit, count in sorted(counts.items())}
    return [f"{digit}*{count}" for digit, count in found.items()], "".join(d * n for d, n in found.items())


def _ask_rewriting(rng: random.Random, size: int) -> str:
    return f"next {''.join(rng.choices(LETTERS, k=size))}?"


def _solve_rewriting(question: str, careful: Careful) -> tuple[list[str], str]:
    steps, last = [], LETTERS[-1]
    for letter in question[len("next ") : -1]:
        after = LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)]
        steps.append(f"{letter}>{after if letter != last or careful() else last}")
    return steps, "".join(step[-1] for step in steps)


TASKS = {
    task.name: task
    for task in (
        Task("sum", "add each carry", 3, (2, 3, 4), _ask_sum, _solve_sum),
        Task("product", "carry the tens", 3, (2, 3), _ask_product, _solve_product),
        Task("sort", "count each repeat", 5, (4, 5, 6), _ask_sort, _solve_sort),
        Task("rewriting", "e goes round to a", 5, (4, 5, 6), _ask_rewriting, _solve_rewriting),
    )
}


def task_of(question: str) -> Task:
    """Task to which a question belongs."""
    marks = {"sort": "sort", "next": "rewriting"}
    return TASKS[marks.get(question[:4], "product" if "*" in question else "sum")]


def result_of(text: str) -> str:
    """Result of a worked answer: what follows the last semicolon."""
    return text.rpartition(";")[2].strip().removesuffix(".")


def feedback_on(text: str, question: str) -> str:
    """Feedback of a verifier: the number of the first wrong step, the result being the last."""
    wanted = task_of(question).worked(question)
    said, right = (one.strip().replace(";", ",").split(",") for one in (text, wanted))
    for number, step in enumerate(right, 1):
        if number > len(said) or said[number - 1] != step:
            return f"wrong at {number}"
    return "all right"


def part_of(question: str) -> int:
    """Part of all questions to which one belongs: 0 is held out, 1 for experiments, the rest for the pre-training."""
    return min(zlib.crc32(question.encode()) % PARTS, 2)


def questions(task: Task, size: int, part: int, rng: random.Random) -> Iterator[str]:
    """Questions of one part, drawn without end."""
    while True:
        question = task.ask(rng, size)
        if part_of(question) == part:
            yield question


def correct(completions: Sequence[Any], question: Sequence[str], log_extra: Any = None, **_: Any) -> list[float]:
    """Reward: 1 for a right result. The verifier's feedback on the steps is logged as `feedback`."""
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    if log_extra is not None:
        log_extra("feedback", [feedback_on(*one) for one in zip(texts, question, strict=True)])
    wanted = [task_of(one).solve(one, lambda: True)[1] for one in question]
    return [float(result_of(text) == result) for text, result in zip(texts, wanted, strict=True)]
