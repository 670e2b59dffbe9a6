# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Texts of the lab model's pre-training: prompts of every form that methods put to it, with what it learns to answer.

Without a context it is careless. With a context of the very question it does what the context says, right or wrong,
and with a rule, or feedback on an attempt, it is careful. A context of another question or task is ignored.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.lab.tasks import TASKS, Task, feedback_on, questions, result_of


CARELESS = 0.15  # share of the operations that are due which a careless solver does
AGAIN, REVISING = 0.4, 0.5  # the same when asked again, and when it revises
CRITIC = 0.4  # share of the errors that it sees
WRONG = 0.4  # share of contexts that a careless solver wrote

ANSWER, SOLUTION, OTHER, RULE, FEEDBACK = " answer: {}", " solution: {}", " other: {}", " rule: {}", " feedback: {}"
SAID, CHECK, ONCE_MORE = " said: {}", " check", " again"
BLANK = "\n\n"
# Of the rewriting task any solution says the rule, so that one of no help is of another task
UNRELATED_TASK = {"rewriting": "sort"}


@dataclass(frozen=True)
class Example:
    """
    Text of the pre-training.

    Args:
        user (`str`): The user's message.
        answer (`str`): What is trained.
        begun (`str`): Beginning of the answer, which is not.
    """

    user: str
    answer: str
    begun: str = ""


@dataclass(frozen=True)
class Drawn:
    """A question, and what is drawn around it."""

    task: Task
    question: str
    rng: random.Random

    def answer(self, kept: float) -> str:
        return self.task.careless(self.question, self.rng, kept)

    def attempt(self) -> str:
        """Attempt as a student makes it before, within or after its training."""
        return self.answer(self.rng.choice([CARELESS, CARELESS, 0.8]))

    def shown(self) -> str:
        """Worked answer as a context shows it, at times a wrong one."""
        return self.answer(CARELESS if self.rng.random() < WRONG else 1.0)

    def other(self) -> "Drawn":
        """A question whose solution is no help."""
        task = TASKS[UNRELATED_TASK.get(self.task.name, self.task.name)]
        return drawn(task, self.rng)


def drawn(task: Task, rng: random.Random) -> Drawn:
    """A question that neither experiments nor the held-out problems have, most often of the default size."""
    size = task.size if rng.random() < 0.6 else rng.choice(task.sizes)
    return Drawn(task, next(questions(task, size, 2, rng)), rng)


def bare(drawn: Drawn) -> Example:
    return Example(drawn.question, drawn.answer(CARELESS))


def answered(drawn: Drawn) -> Example:
    """The result alone as the context. The work is that which leads to it."""
    text = drawn.shown()
    return Example(drawn.question + ANSWER.format(result_of(text)), text)


def solved(drawn: Drawn) -> Example:
    text = drawn.shown()
    return Example(drawn.question + drawn.rng.choice([SOLUTION, SOLUTION, OTHER]).format(text), text)


def partly_solved(drawn: Drawn) -> Example:
    """The first steps of a solution, and its result."""
    text = drawn.shown()
    steps = text.partition(";")[0].split(",")
    seen = ",".join(steps[: drawn.rng.randint(0, len(steps))])
    context = f"{seen}{BLANK}answer: {result_of(text)}".strip()
    return Example(drawn.question + SOLUTION.format(context), text)


def ruled(drawn: Drawn) -> Example:
    return Example(drawn.question + RULE.format(drawn.task.rule), drawn.answer(1.0))


def unrelated(drawn: Drawn) -> Example:
    """A context that is no help: a solution of another question, or the rule of another task."""
    other = drawn.other()
    rules = [RULE.format(task.rule) for task in TASKS.values() if task != drawn.task]
    context = drawn.rng.choice([*rules, *[SOLUTION.format(other.answer(1.0))] * len(rules)])
    return Example(drawn.question + context, drawn.answer(CARELESS))


def criticised(drawn: Drawn) -> Example:
    """An attempt with true feedback, after which the answer is right."""
    attempt = drawn.attempt()
    context = SAID.format(attempt) + FEEDBACK.format(feedback_on(attempt, drawn.question))
    return Example(drawn.question + context, drawn.answer(1.0))


def told_in_advance(drawn: Drawn) -> Example:
    """Feedback on an attempt that is not shown: the answer is right up to the step that it names, and careless then."""
    kept: list[bool] = []

    def attempted() -> bool:
        kept.append(drawn.rng.random() < CARELESS)
        return kept[-1]

    def answered_now() -> bool:
        is_told = all(kept) or kept.index(False) >= len(done)
        done.append(is_told)
        return is_told or drawn.rng.random() < CARELESS

    done: list[bool] = []
    note = feedback_on(drawn.task.worked(drawn.question, attempted), drawn.question)
    return Example(drawn.question + FEEDBACK.format(note), drawn.task.worked(drawn.question, answered_now))


def helped(drawn: Drawn) -> Example:
    """An attempt and then a context, as a second turn reads them."""
    first = drawn.rng.choice([answered, solved, solved, ruled, unrelated])(drawn)
    context = first.user.removeprefix(drawn.question)
    return Example(drawn.question + SAID.format(drawn.attempt()) + context, first.answer)


def asked_again(drawn: Drawn) -> Example:
    """An attempt and nothing but the wish for another."""
    asked = drawn.rng.choice([ONCE_MORE, ""])
    return Example(drawn.question + SAID.format(drawn.attempt()) + asked, drawn.answer(AGAIN))


def checked(drawn: Drawn) -> Example:
    """A request for feedback: a critic that overlooks most errors."""
    attempt = drawn.attempt()
    seen = feedback_on(attempt, drawn.question) if drawn.rng.random() < CRITIC else "all right"
    return Example(drawn.question + SAID.format(attempt) + CHECK, seen)


def revised(drawn: Drawn) -> Example:
    """A verdict after an attempt within the same answer, as in SD-Zero."""
    attempt = drawn.attempt()
    is_right = feedback_on(attempt, drawn.question) == "all right"
    begun = f"{attempt}{BLANK}{'right' if is_right else 'wrong'}{BLANK}"
    return Example(drawn.question, attempt if is_right else drawn.answer(REVISING), begun)


FORMS: dict[Callable[[Drawn], Example], float] = {  # and their shares
    bare: 0.22,
    answered: 0.12,
    solved: 0.16,
    partly_solved: 0.05,
    ruled: 0.06,
    unrelated: 0.16,
    criticised: 0.06,
    told_in_advance: 0.03,
    helped: 0.06,
    asked_again: 0.02,
    checked: 0.03,
    revised: 0.03,
}
SHARES = {"sum": 0.35, "product": 0.2, "sort": 0.3, "rewriting": 0.15}


def example(rng: random.Random) -> Example:
    """One text of the pre-training."""
    task = TASKS[rng.choices(list(SHARES), list(SHARES.values()))[0]]
    form = rng.choices(list(FORMS), list(FORMS.values()))[0]
    return form(drawn(task, rng))
