# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Error rates of the pre-flight: how often a teacher is called better or worse where it is as good as the student, and how
often a gap is found, in simulated scores.
"""

import argparse
from collections.abc import Callable

import numpy as np

from benchmarks.report import table
from trl_opsd.diagnostics.preflight_report import ViewReport, with_p_values


Draw = Callable[[int], np.ndarray]  # scores of so many rollouts of each prompt, (prompts, rollouts)
# From a generator and a number of prompts to the draws of student and teacher
Scores = Callable[[np.random.Generator, int], tuple[Draw, Draw]]


def coins(rng: np.random.Generator, rates: np.ndarray) -> Draw:
    """Right answers at a rate of each prompt."""
    return lambda rollouts: (rng.random((len(rates), rollouts)) < rates[:, None]).astype(float)


def right(student: float, teacher: float) -> Scores:
    """Right answers at two rates, the same for all prompts."""
    return lambda rng, prompts: (coins(rng, np.full(prompts, student)), coins(rng, np.full(prompts, teacher)))


def own_rates(rng: np.random.Generator, prompts: int) -> tuple[Draw, Draw]:
    draw = coins(rng, rng.random(prompts))
    return draw, draw


def normal(rng: np.random.Generator, prompts: int) -> tuple[Draw, Draw]:
    level = rng.normal(size=(prompts, 1))

    def draw(rollouts: int) -> np.ndarray:
        return level + rng.normal(size=(prompts, rollouts))

    return draw, draw


def uneven(rng: np.random.Generator, prompts: int) -> tuple[Draw, Draw]:
    """A context that solves one prompt in ten and spoils the others, as good as none on average."""
    return coins(rng, np.full(prompts, 0.1)), coins(rng, (rng.random(prompts) < 0.1).astype(float))


ALIKE: dict[str, Scores] = {
    "right in 1 of 2": right(0.5, 0.5),
    "right in 1 of 10": right(0.1, 0.1),
    "right at a rate of the prompt's own": own_rates,
    "normal": normal,
}
UNEVEN: dict[str, Scores] = {"1 prompt in 10 solved, the others spoilt": uneven}
APART: dict[str, Scores] = {
    f"right: student {student:.0%}, teacher {teacher:.0%}": right(student, teacher)
    for student, teacher in ((0.1, 0.9), (0.3, 0.6), (0.3, 0.5))
}
PROMPTS, ROLLOUTS, SOURCES = (8, 16, 32), (1, 8), (1, 3, 6)


def view_of(number: int, student: np.ndarray, teacher: np.ndarray) -> ViewReport:
    """Report of a view with these scores, `(prompts, rollouts)`."""
    gaps = dict(enumerate((teacher - student).mean(1).tolist()))
    return ViewReport(
        source=f"source {number}", view="privileged", share=1.0, dropped=0, shortened=0, mean_length=9.0, max_length=9,
        divergence=0.5, log_ratio=-0.5, scored=student.size, student_score=student.mean(), teacher_score=teacher.mean(),
        gaps=gaps, bounded=bool(min(student.min(), teacher.min()) >= 0 and max(student.max(), teacher.max()) <= 1),
    )  # fmt: skip


def verdict_rates(
    scores: Scores, prompts: int, rollouts: int, sources: int, runs: int, seed: int = 0
) -> tuple[float, float]:
    """Shares of pre-flights that call the teacher of any of the sources better, and worse, than the student."""
    rng, better, worse = np.random.default_rng(seed), 0, 0
    for _ in range(runs):
        student, teacher = scores(rng, prompts)
        own = student(rollouts)  # one for all sources
        views = [view_of(i, own, teacher(rollouts)) for i in range(sources)]
        verdicts = {view.verdict for view in with_p_values(views)}
        better += bool(verdicts & {"worth it", "weak"})
        worse += "worse" in verdicts
    return better / runs, worse / runs


def rates_table(kinds: dict[str, Scores], sources: tuple[int, ...], runs: int, of: Callable[..., float]) -> str:
    """One row for each kind and number of rollouts; `of` makes one number of the shares for better and worse."""
    rows = [
        [kind, rollouts]
        + [
            ", ".join(f"{of(verdict_rates(scores, prompts, rollouts, count, runs)):.1%}" for count in sources)
            for prompts in PROMPTS
        ]
        for kind, scores in kinds.items()
        for rollouts in ROLLOUTS
    ]
    return table(["scores", "rollouts a prompt", *(f"{prompts} prompts" for prompts in PROMPTS)], rows)


def main(args: argparse.Namespace) -> None:
    print(f"Called better or worse without a gap, {', '.join(map(str, SOURCES))} sources:\n")
    print(rates_table(ALIKE, SOURCES, args.runs, max) + "\n", flush=True)
    print("Called better or worse with no gap on average, 1 source:\n")
    print(rates_table(UNEVEN, (1,), args.runs, max) + "\n", flush=True)
    print("Called better with a gap, 1 source:\n")
    print(rates_table(APART, (1,), args.runs, lambda rates: rates[0]))
