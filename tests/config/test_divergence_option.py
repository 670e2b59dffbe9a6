# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`distillation_divergence`: the names in the table of divergences, and a new one that a run uses at once."""

import pytest
import torch

from trl_opsd.losses import DIVERGENCES, Divergence, DivergenceSpec, Pair, Terms, token_loss
from trl_opsd.losses.divergences import logit_gradient


def total_variation(pair: Pair, alpha: float) -> Terms:
    """alpha sum_v |p_v - q_v|, with slopes alpha p_v sign(p_v - q_v)."""
    apart = pair.p - pair.q
    return Terms(alpha * apart.abs(), alpha * pair.p * apart.sign(), 0.0)


@pytest.fixture
def with_total_variation(monkeypatch):
    monkeypatch.setitem(DIVERGENCES, "total_variation", Divergence(total_variation, (0.0, 10.0)))


def test_an_entry_of_the_table_trains(make_trainer, with_total_variation):
    """One function and one line of the table: the config, the kernel and the log follow."""
    options = {"distillation_divergence": "total_variation", "distillation_alpha": 2.0, "max_steps": 1}
    trainer = make_trainer(**options)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    (log,) = (entry for entry in trainer.state.log_history if "self_distillation/divergence" in entry)
    assert 0 < log["self_distillation/divergence"] <= 4.0 and log["self_distillation/clipped_share"] == 0
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_its_gradient_is_that_of_its_slopes(with_total_variation):
    logits, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf = logits.requires_grad_()
    p, q = leaf.softmax(-1), teacher.softmax(-1)
    (want,) = torch.autograd.grad(2 * (p - q).abs().sum(), leaf)
    pair = Pair.of(logits.detach().log_softmax(-1), teacher.log_softmax(-1))
    got = token_loss(pair, DivergenceSpec("total_variation", 2.0))
    torch.testing.assert_close(got.gradient, want)
    torch.testing.assert_close(got.gradient, logit_gradient(total_variation(pair, 2.0).slopes, pair.p))
    torch.testing.assert_close(got.loss, 2 * (p - q).abs().sum(-1).detach())


def test_its_range_is_checked(with_total_variation):
    for alpha in (0.0, 10.0):
        with pytest.raises(ValueError, match="`alpha` between 0 and 10, ends excluded"):
            DivergenceSpec("total_variation", alpha)
    with pytest.raises(ValueError, match="'total_variation'"):
        DivergenceSpec("no_such")  # the names that there are
