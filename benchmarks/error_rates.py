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


# From a generator and a number of prompts to the distribution of a score at each: draws of a size (prompts, rollouts)
Scores = Callable[[np.random.Generator, int], Callable[[int], np.ndarray]]


def coins(probability: Callable[[np.random.Generator, int], np.ndarray]) -> Scores:
    """Right or wrong, with a probability for each prompt."""

    def scores(rng: np.random.Generator, prompts: int) -> Callable[[int], np.ndarray]:
        p = probability(rng, prompts)[:, None]
        return lambda rollouts: (rng.random((prompts, rollouts)) < p).astype(float)

    return scores


def normal(rng: np.random.Generator, prompts: int) -> Callable[[int], np.ndarray]:
    level = rng.normal(size=(prompts, 1))
    return lambda rollouts: level + rng.normal(size=(prompts, rollouts))


SCORES: dict[str, Scores] = {
    "right in 1 of 2": coins(lambda rng, prompts: np.full(prompts, 0.5)),
    "right in 1 of 10": coins(lambda rng, prompts: np.full(prompts, 0.1)),
    "right at a rate of the prompt's own": coins(lambda rng, prompts: rng.random(prompts)),
    "normal": normal,
}


def view_of(number: int, student: np.ndarray, teacher: np.ndarray) -> ViewReport:
    """Report of a view with these scores, `(prompts, rollouts)`."""
    gaps = dict(enumerate((teacher - student).mean(1).tolist()))
    return ViewReport(
        source=f"source {number}", view="privileged", share=1.0, dropped=0, shortened=0, mean_length=9.0, max_length=9,
        divergence=0.5, log_ratio=-0.5, scored=student.size, student_score=student.mean(), teacher_score=teacher.mean(),
        gaps=gaps, bounded=bool(min(student.min(), teacher.min()) >= 0 and max(student.max(), teacher.max()) <= 1),
    )  # fmt: skip


def error_rates(
    scores: Scores, prompts: int, rollouts: int, sources: int, runs: int, seed: int = 0
) -> tuple[float, float]:
    """Shares of pre-flights that call any of the sources better, and worse, where all are as good as the student."""
    rng, better, worse = np.random.default_rng(seed), 0, 0
    for _ in range(runs):
        draw = scores(rng, prompts)
        student = draw(rollouts)  # one for all sources
        verdicts = {
            view.verdict for view in with_p_values([view_of(i, student, draw(rollouts)) for i in range(sources)])
        }
        better += bool(verdicts & {"worth it", "weak"})
        worse += "worse" in verdicts
    return better / runs, worse / runs


def found(student: float, teacher: float, prompts: int, rollouts: int, runs: int, seed: int = 0) -> float:
    """Share of pre-flights of one source that call a better teacher better, by rates of right answers."""
    rng = np.random.default_rng(seed)
    sides = [
        [coins(lambda _, count, p=p: np.full(count, p))(rng, prompts)(rollouts) for p in (student, teacher)]
        for _ in range(runs)
    ]
    return sum(with_p_values([view_of(0, *pair)])[0].verdict in ("worth it", "weak") for pair in sides) / runs


def main(args: argparse.Namespace) -> None:
    sizes = 8, 16, 32
    rows = []
    for name, scores in SCORES.items():
        for rollouts in (1, 8):
            cells = []
            for prompts in sizes:
                rates = [error_rates(scores, prompts, rollouts, sources, args.runs) for sources in (1, 3, 6)]
                cells.append(", ".join(f"{max(pair):.1%}" for pair in rates))
            rows.append([name, rollouts, *cells])
            print(rows[-1], flush=True)
    print(table(["scores", "rollouts a prompt", *(f"{size} prompts" for size in sizes)], rows) + "\n")
    rows = [
        [f"{student:.0%} and {teacher:.0%}", rollouts]
        + [f"{found(student, teacher, prompts, rollouts, args.runs):.0%}" for prompts in sizes]
        for student, teacher in ((0.1, 0.9), (0.3, 0.6), (0.3, 0.5))
        for rollouts in (1, 8)
    ]
    print(table(["student and teacher right", "rollouts a prompt", *(f"{size} prompts" for size in sizes)], rows))
