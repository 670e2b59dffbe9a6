# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""DASD, as we read it: attract at low entropy, repel at high."""

import math

import pytest
import torch

from method_cases import check_loss


def entropy(log_p):
    return -(log_p.exp() * log_p).sum(-1)


def jsd(log_p, log_q):
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_q.exp() * (log_q - log_m) + log_p.exp() * (log_p - log_m)).sum(-1)


@pytest.mark.parametrize(("share", "repel"), [(0.2, 0.1), (0.5, 1.0)])
def test_loss(share, repel):
    signs = []

    def formula(log_p, log_qs, labels):
        unsure = entropy(log_p.detach())
        high = unsure > unsure.sort().values[math.floor((1 - share) * (len(unsure) - 1))]
        # The quantile lies between two entropies, of which the upper one is above it
        factor = torch.where(high, -repel, 1.0)
        signs.extend(factor.sign().tolist())
        return factor * jsd(log_p, log_qs[0])

    check_loss("dasd", ["privileged"], formula, method_options={"share": share, "repel": repel})
    assert {-1.0, 1.0} == set(signs), "some attract and some repel"


def test_repelling_nothing_is_the_plain_divergence():
    check_loss("dasd", ["privileged"], lambda log_p, log_qs, _: jsd(log_p, log_qs[0]), method_options={"share": 0.0})


def test_repulsion_is_bounded():
    """The divergence that is pushed up is at most log 2."""

    def formula(log_p, log_qs, labels):
        unsure = entropy(log_p.detach())
        return torch.where(unsure == unsure.min(), 1.0, -1.0) * jsd(log_p, log_qs[0])

    options = {"share": 1.0, "repel": 1.0}
    assert -math.log(2) < check_loss("dasd", ["privileged"], formula, method_options=options, temperature=0.05) < -0.35
