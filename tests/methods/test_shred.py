# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""SHRED: the worked vectors of the project, the loss in float64, which tokens are demoted, and a run."""

import math

import pytest
import torch
from datasets import Dataset

from method_cases import check_loss
from trl_opsd.methods.papers.shred import demoted, lowest


P = torch.tensor([[0.77, 0.12, 0.05, 0.03, 0.03]], dtype=torch.float64)


def by_hand(log_q, label, nucleus):
    """Target of one token: entries of V_t are set to 0, and the others renormalised."""
    q = log_q.exp()
    gone, mass = {int(label)}, 0.0
    for token in sorted(range(len(q)), key=lambda v: -q[v]):
        if mass >= nucleus:
            break
        gone.add(token)
        mass += float(q[token])
    target = torch.tensor([0.0 if v in gone else float(q[v]) for v in range(len(q))], dtype=torch.float64)
    return target / target.sum()


@pytest.mark.parametrize(
    ("nucleus", "expected"), [(0.0, [0, 0.52, 0.22, 0.13, 0.13]), (0.9, [0, 0, 0, 0.5, 0.5])], ids=["alone", "nucleus"]
)
def test_the_worked_vectors(nucleus, expected):
    """Of the project's page, to two digits; the nucleus of 0.9 is three tokens, as two have 0.89."""
    mask = demoted(P.log(), torch.tensor([0]), nucleus)
    rest = P.masked_fill(mask, 0.0)
    assert (rest / rest.sum()).squeeze(0).tolist() == pytest.approx(expected, abs=0.005)
    assert by_hand(P[0].log(), 0, nucleus).tolist() == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("nucleus", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.7, 1.0])
def test_loss(share, nucleus):
    """Rows of three tokens: of each the lowest one, two, all or none are demoted."""

    def reference(log_p, log_qs, labels):
        log_q, total = log_qs[0], 0.0
        on_label = log_q[torch.arange(len(labels)), labels]
        for row in range(3):
            own = range(3 * row, 3 * row + 3)
            hard = sorted(own, key=lambda i: float(on_label[i]))[: math.floor(share * 3)]
            for i in own:
                target = by_hand(log_q[i], labels[i], nucleus) if i in hard else log_q[i].exp()
                held = target > 0
                total = total + (target[held] * (target[held].log() - log_p[i][held])).sum() / len(labels)
        return total

    check_loss("shred", ["privileged"], reference, method_options={"share": share, "nucleus": nucleus})


def test_which_tokens_are_the_lowest():
    logps = torch.tensor([-1.0, -3.0, -3.0, -2.0, -5.0, -4.0, -4.0])
    rows = torch.tensor([0, 0, 0, 0, 2, 2, 2])
    assert lowest(logps, rows, 0.5).tolist() == [False, True, True, False, True, False, False]
    assert lowest(logps, rows, 0.25).tolist() == [False, True, False, False, False, False, False], "the first of equals"
    assert lowest(logps, rows, 0.67).tolist() == [False, True, True, False, True, True, False]
    assert lowest(torch.zeros(100), torch.zeros(100, dtype=torch.long), 0.29).sum() == 29
    assert lowest(torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.5).shape == (0,)


def trainer_of(make_trainer, rows, share, **options):
    for i, row in enumerate(rows):
        row["forget"] = f"It is {i}." if i % 4 else None
    own = {"dataset": Dataset.from_list(rows), "method_options": {"share": share}}
    return make_trainer(method="shred", shuffle_dataset=False, **own, **options)


def test_a_token_without_a_target_is_left_out():
    """It has all the mass of the frozen model: what is left of it would be rounding."""
    from trl_opsd.losses import Tile, TokenStats
    from trl_opsd.methods import StepContext, method_of

    log_q = torch.tensor([[0.0, -20.0, -21.0], [-1.0, -1.0, -1.2]]).log_softmax(-1)
    log_p = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, -1.0, -1.0]]).log_softmax(-1)
    labels, rows = torch.tensor([0, 0]), torch.tensor([0, 0])
    on_label = log_q.gather(1, labels.unsqueeze(1)).T
    stats = TokenStats(
        on_label, on_label, on_label[0], on_label[0], on_label[0], rows, torch.ones(1, 2, dtype=torch.bool)
    )
    method = method_of("shred")
    loss = method.auxiliary_loss(StepContext(["privileged"], {**method.options, "share": 1.0}))
    tile = Tile(log_p, log_p.exp(), [log_q], labels, None, torch.ones(1, 2, dtype=torch.bool), slice(0, 2), stats)
    value, gradient = loss(tile)
    assert value[0] == 0 and (gradient[0] == 0).all() and value[1] > 0
    assert gradient[1].sum() == pytest.approx(0.0, abs=1e-6) and gradient[1, 0] == log_p[1, 0].exp()
