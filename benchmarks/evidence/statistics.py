# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Bootstrap intervals of scores over seeds and problems, which are crossed: each seed answers the same problems."""

from dataclasses import dataclass

import numpy as np


RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean with the ends of its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def resampled_means(scores: np.ndarray, rng: np.random.Generator, problem_weights: np.ndarray) -> np.ndarray:
    """Means of `(R,)` resamples of scores `(S, P)`: seeds drawn anew here, problems by their weights `(R, P)`."""
    seeds = len(scores)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(problem_weights)) / seeds
    return ((weights @ scores) * problem_weights).sum(1)


def interval(scores: np.ndarray, other: np.ndarray | None = None) -> Interval:
    """
    Percentile interval of a mean, or of a difference of two. As seeds and problems are both resampled, it is too wide,
    up to 1.7 times, where neither says anything of a score.

    Args:
        scores (`np.ndarray`): `(S, P)`, a row a seed and a column a problem.
        other (`np.ndarray`, *optional*): `(S', P)`, subtracted. The problems are resampled together, the seeds of each
            by themselves.

    Raises:
        ValueError: If the two are not of the same problems.
    """
    if other is not None and other.shape[1] != scores.shape[1]:
        raise ValueError(f"The scores are of {scores.shape[1]} problems and those beside them of {other.shape[1]}.")
    rng, problems = np.random.default_rng(0), scores.shape[1]
    weights = rng.multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES) / problems
    means, mean = resampled_means(scores, rng, weights), float(scores.mean())
    if other is not None:
        means, mean = means - resampled_means(other, rng, weights), mean - float(other.mean())
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))
