# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Significance of paired gaps: the sign-flip permutation test (Fisher, The Design of Experiments, 1935, section 21), and
Holm's correction for several tests (A Simple Sequentially Rejective Multiple Test Procedure, 1979).
"""

import math
from collections.abc import Sequence

import numpy as np


ALPHA = 0.025  # least probability of a gap by chance at which it counts as one, on each side
_FREE = 13  # signs that are flipped independently: 8,192 patterns


def sign_flip_p(gaps: Sequence[float]) -> tuple[float, float]:
    """
    One-sided p-values of the sum of paired gaps: the sign-flip permutation test.

    Where both sides of a pair are drawn alike, a gap is as likely as its negative, and so are all signs of the gaps
    given their sizes. A p-value is the share of sign patterns under which the sum is at least (or at most) the one that
    was seen. Of many gaps the patterns are a random subgroup of all, under which the test keeps its level exactly
    (Hemerik and Goeman, Exact Testing with Random Permutations, 2018). No distribution is assumed.

    Args:
        gaps (`Sequence[float]`): Independent gaps. Those of 0 say nothing, as they have no sign.

    Returns:
        `tuple[float, float]`: Above and below zero, each from 2^-n for n gaps of one sign to 1.
    """
    seen = np.array([gap for gap in gaps if gap], dtype=np.float64)
    if not len(seen):
        return 1.0, 1.0
    sums = _patterns(len(seen)) @ seen
    slack = 1e-9 * np.abs(seen).sum()  # sums of the same numbers in another order
    return float((sums >= seen.sum() - slack).mean()), float((sums <= seen.sum() + slack).mean())


def _patterns(count: int) -> np.ndarray:
    """Signs of gaps, `(patterns, count)`: all of few, those of a subgroup of many, the same on every process."""
    if count <= _FREE:
        flips = 1.0 - 2.0 * np.eye(count)
    else:
        flips = 1.0 - 2.0 * np.random.default_rng(0).integers(0, 2, size=(_FREE, count))
        flips[0] = -1.0  # each pattern and its opposite
    patterns = np.ones((1, count))
    for flip in flips:
        patterns = np.concatenate([patterns, patterns * flip])
    return patterns


def holm(p_values: Sequence[float]) -> list[float]:
    """
    Adjusted p-values: those at most `alpha` hold together with an error rate of at most `alpha`, however the tests
    depend on each other.

    Args:
        p_values (`Sequence[float]`): Of each test.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(p_values[i] * (len(p_values) - rank), 1.0))
        adjusted[i] = largest
    return adjusted


def pairs_needed(tests: int) -> int:
    """Fewest pairs with which one of so many tests can be significant: with fewer, all may lean one way by chance."""
    return math.ceil(math.log2(max(tests, 1) / ALPHA))
