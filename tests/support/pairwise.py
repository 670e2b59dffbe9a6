# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Pairwise corners of a product of options: few cases in which any two values of two options meet."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(**options: Sequence[Any]) -> list[tuple[Any, ...]]:
    """
    Cases, in the order of the options, that hold every pair of values of two options at least once.

    Greedy and without chance: each case starts from the first pair that is still missing and gets, option by option,
    the value that completes most of the missing pairs.

    Args:
        **options (`Sequence`): Values of each option, in the order of the arguments of the test.
    """
    sizes = [len(values) for values in options.values()]
    if len(sizes) == 1:
        return [(value,) for values in options.values() for value in values]
    missing = {
        frozenset([(one, i), (other, j)])
        for one, other in combinations(range(len(sizes)), 2)
        for i, j in product(range(sizes[one]), range(sizes[other]))
    }
    cases = []
    while missing:
        case = dict(min(missing, key=sorted))
        for option in range(len(sizes)):
            if option not in case:
                gains = [sum({(option, i), pair} in missing for pair in case.items()) for i in range(sizes[option])]
                case[option] = gains.index(max(gains))
        missing -= set(map(frozenset, combinations(case.items(), 2)))
        cases.append(tuple(values[case[option]] for option, values in enumerate(options.values())))
    return cases
