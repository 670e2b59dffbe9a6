# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The tests behind the verdicts of the pre-flight: p-values, correction, and error rates where there is no gap."""

import itertools
import math

import numpy as np
import pytest

from benchmarks.error_rates import ALIKE, APART, rates_table, right, verdict_rates
from trl_opsd.diagnostics.significance import ALPHA, holm, pairs_needed, sign_flip_p


def by_hand(gaps):
    """P-value by all signs of all gaps."""
    sums = [
        math.fsum(s * gap for s, gap in zip(signs, gaps, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(gaps))
    ]
    return sum(one >= math.fsum(gaps) - 1e-9 for one in sums) / len(sums)


@pytest.mark.parametrize("count", [1, 2, 5, 10, 13])
def test_p_values_are_shares_of_all_signs(count):
    rng = np.random.default_rng(count)
    for gaps in (rng.normal(0.3, 1, count), rng.integers(-1, 2, count) * 1.0, rng.integers(-3, 4, count) / 8):
        assert sign_flip_p(gaps) == pytest.approx((by_hand(gaps), by_hand(-gaps)), abs=1e-12)


@pytest.mark.parametrize("count", [14, 20, 40, 100])
@pytest.mark.parametrize("tail", [0.3, 0.05, 0.01])
def test_many_gaps_agree_with_the_binomial_distribution(count, tail):
    def binomial(above):
        return sum(math.comb(count, i) for i in range(above, count + 1)) / 2**count

    above = next(i for i in range(count) if binomial(i) <= tail)
    better, worse = sign_flip_p([1.0] * above + [-1.0] * (count - above))
    deviation = 3 * math.sqrt(binomial(above) / 8192)
    assert abs(better - binomial(above)) < deviation and abs(worse - 1 + binomial(above + 1)) < deviation


def test_what_says_nothing():
    assert sign_flip_p([]) == sign_flip_p([0.0] * 9) == (1.0, 1.0)
    assert sign_flip_p([0.0, 0.5, 0.0, 0.25, 1.0]) == (1 / 8, 1.0), "gaps of 0 have no sign"
    assert sign_flip_p([1e-3] * 6) == sign_flip_p([5.0] * 6) == (1 / 64, 1.0), "of any scale"


@pytest.mark.parametrize("count", [6, 8, 12, 13])
def test_the_level_is_kept_for_all_sizes_of_gaps(count):
    """Exactly: over all signs of given gaps, no more than that share is significant."""
    rng = np.random.default_rng(count)
    for sizes in (np.ones(count), rng.random(count), rng.exponential(size=count) ** 3, np.arange(1, count + 1) / 8):
        sums = np.array(list(itertools.product((-1, 1), repeat=count))) @ sizes
        p_values = (np.sort(sums).searchsorted(sums - 1e-9) * -1.0 + len(sums)) / len(sums)
        signs = np.array(list(itertools.product((-1, 1), repeat=count)))
        some = rng.integers(0, len(sums), 40)
        assert [sign_flip_p(signs[i] * sizes)[0] for i in some] == pytest.approx(p_values[some])
        assert (p_values <= ALPHA).mean() <= ALPHA


@pytest.mark.parametrize(("sources", "prompts"), [(1, 6), (2, 7), (3, 7), (6, 8), (7, 9), (12, 9)])
def test_the_fewest_prompts_that_can_tell(sources, prompts):
    assert pairs_needed(sources) == prompts
    assert 2**-prompts * sources <= ALPHA < 2 ** -(prompts - 1) * sources


def test_holm():
    assert holm([]) == []
    assert holm([0.02]) == [0.02]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.004, 0.9]) == pytest.approx([1.0, 0.012, 1.0])


@pytest.mark.parametrize("scores", ALIKE)
@pytest.mark.parametrize(
    ("prompts", "rollouts", "sources", "runs"), [(8, 1, 1, 300), (8, 8, 6, 100), (16, 8, 3, 100), (32, 1, 1, 300)]
)
def test_error_rates_without_a_gap(scores, prompts, rollouts, sources, runs):
    """No more verdicts by chance than the level allows, within what so many runs can tell; docs/privileged.md has more
    runs."""
    limit = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
    assert max(verdict_rates(ALIKE[scores], prompts, rollouts, sources, runs)) < limit


def test_gaps_are_found():
    assert verdict_rates(right(0.1, 0.9), 16, 1, 1, 50)[0] > 0.9
    assert verdict_rates(right(0.3, 0.6), 16, 8, 1, 50)[0] > 0.9
    assert verdict_rates(right(0.9, 0.1), 16, 1, 6, 50)[1] > 0.9


def test_the_table_of_rates():
    head, _, *rows = rates_table(dict(list(APART.items())[:1]), (1, 2), 2, max).splitlines()
    assert head == "| scores | rollouts a prompt | 8 prompts | 16 prompts | 32 prompts |"
    assert rows[1].startswith("| right: student 10%, teacher 90% | 8 | 100.0%, 100.0% |") and len(rows) == 2
