# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""[`pairwise`] covers every pair, with few cases."""

from itertools import combinations

from pairwise import pairwise


def test_every_pair_meets():
    options = {"a": list(range(16)), "b": [{}, {"x": 1}, None], "c": ["u", "v", "w", "x"], "d": [True, False]}
    cases = pairwise(**options)
    for (one, name), (other, second) in combinations(enumerate(options), 2):
        met = [(case[one], case[other]) for case in cases]
        assert all((i, j) in met for i in options[name] for j in options[second])
    assert len(cases) <= 70 < 16 * 3 * 4 * 2 and cases == pairwise(**options)
    assert pairwise(a=[1, 2]) == [(1,), (2,)]
