# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""OG-OPSD: forward KL on right rollouts, reverse KL on the prefix of wrong ones."""

import pytest
import torch

from method_batches import MIXED, RIGHT, gradients, norm, scripted_trainer, views_of
from method_cases import N, check_loss, random
from trl_opsd.methods.papers.og_opsd import trusted_prefix


ROW = 3  # tokens of a row in `check_loss`


def kept_by_hand(entropies, first, rise):
    """Token by token."""
    lowest, total, kept = float("inf"), 0.0, []
    for t, entropy in enumerate(entropies, start=1):
        total += entropy
        if t >= first:
            if t > first and total / t > (1 + rise) * lowest:
                return kept + [0.0] * (len(entropies) - t + 1)
            lowest = min(lowest, total / t)
        kept.append(1.0)
    return kept


@pytest.mark.parametrize("first", [1, 4, 20, 30])
@pytest.mark.parametrize("rise", [0.0, 0.1, 0.5])
def test_prefix(first, rise):
    cuts = []
    for seed in range(8):
        entropy = torch.rand(20, generator=random(seed), dtype=torch.float64)
        got, expected = trusted_prefix(entropy, first, rise).tolist(), kept_by_hand(entropy.tolist(), first, rise)
        assert got == expected
        cuts.append(sum(got))
    assert min(cuts) >= min(first, 20)
    if rise < 0.5:
        assert (min(cuts) < 20) == (first < 20), "some are cut"


def test_a_falling_or_level_entropy_cuts_nothing():
    for entropy in (torch.linspace(2, 1, 9), torch.full((9,), 1.5), torch.zeros(9), torch.zeros(0)):
        assert torch.equal(trusted_prefix(entropy, 2, 0.01), torch.ones_like(entropy))


@pytest.mark.parametrize("options", [{"first": 1, "rise": 0.02}, {"first": 2, "rise": 0.0}, {"first": 9, "rise": 0.0}])
def test_loss(options):
    """Each token has both views here: the mean of the two losses, the reverse KL up to its row's cut."""
    cut = []

    def formula(log_p, log_qs, labels):
        right, wrong = log_qs
        forward = (right.exp() * (right - log_p)).sum(-1)
        reverse = (log_p.exp() * (log_p - wrong)).sum(-1)
        entropy = -(wrong.exp() * wrong).sum(-1).detach()
        kept = [kept_by_hand(entropy[i : i + ROW].tolist(), **options) for i in range(0, N, ROW)]
        kept = torch.tensor(kept, dtype=torch.float64).flatten()
        cut.append(int(N - kept.sum()))
        return (forward + kept * reverse) / 2

    check_loss("og_opsd", ["right", "wrong"], formula, method_options=options)
    assert (cut[0] > 0) == (options["first"] < ROW)


def test_views_are_named_by_success(make_trainer):
    views = views_of(scripted_trainer(make_trainer, "og_opsd", MIXED, RIGHT))
    assert [list(view) for view in views] == [["wrong"], ["right"], ["wrong"], ["right"], *[["right"]] * 4]
    assert [*views[0].values(), *views[4].values()] == ["1 + 1 = 2", "2 + 3 = 5"]


def test_a_cut_takes_a_part_of_the_gradient_and_none_from_right_rollouts(make_trainer):
    def of(texts, **options):
        return gradients(scripted_trainer(make_trainer, "og_opsd", *texts, method_options=options))[1]

    wrong, whole, least = [["7 and that is all", "so 8"]], {"first": 200}, {"first": 1, "rise": 0.0}
    assert 0 < norm(of(wrong, **least)) != pytest.approx(norm(of(wrong, **whole)))
    all_right = [["it is 2", "2"], RIGHT[:2]]
    one, other = of(all_right, **least), of(all_right, **whole)
    assert norm(one) > 0 and all(torch.equal(one[name], other[name]) for name in one)
