# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Metrics from local sums and counts, and statistics that reach the log by their names. Legend: K views, B rows,
C completion tokens."""

import json
from dataclasses import replace

import pytest
import torch

from trl_opsd.kernels import forward_pass, tile
from trl_opsd.monitoring.metrics import LoggedSums, reduce_sums, repetition, token_sums


class TwoRanks:
    """An accelerator whose other rank brings `others`, or the same values once more."""

    device = torch.device("cpu")

    def __init__(self, others=None):
        self.others, self.reductions = others, 0

    def reduce(self, values, reduction):
        assert reduction == "sum"
        self.reductions += 1
        return values + (values if self.others is None else torch.tensor(self.others))


def test_sums_over_ranks_in_one_reduction():
    ranks = TwoRanks([3.0, 1.0, 5.0, 0.0, 0.0, 4.0, 2.0])
    sums = {
        "numbers": (1, 3),
        "total": (2, None),
        "nothing": (7.0, 0),
        "tensors": (torch.tensor(2.0), torch.tensor(4)),
    }
    got = reduce_sums(ranks, sums)
    assert got == {
        "self_distillation/numbers": (4.0, 4.0),
        "self_distillation/total": (7.0, None),
        "self_distillation/tensors": (6.0, 6.0),
    }
    assert ranks.reductions == 1


def test_logged_means_are_over_all_that_was_seen_since_the_last_log():
    """Of tokens, that is, and not of batches; an amount is one of a generation batch, or of a whole evaluation."""
    kept, train, evaluation = LoggedSums(), {"loss": [7.0]}, {}
    for sums in ({"a": (1.0, 1.0), "amount": (4.0, None)}, {"a": (9.0, 3.0), "amount": (2.0, None), "b": (0.0, 0.0)}):
        kept.add("train", sums, train)
        kept.add("eval", sums, evaluation)
    assert train == {"loss": [7.0], "a": [2.5], "amount": [3.0], "b": [0.0]}
    assert evaluation == {"a": [2.5], "amount": [6.0], "b": [0.0]}

    resumed = LoggedSums()
    assert resumed.state() == {}
    resumed.restore(json.loads(json.dumps(kept.state())))
    for one in (kept, resumed):
        logged = {name: list(values) for name, values in train.items()}
        one.add("train", {"a": (0.0, 6.0)}, logged)
        assert logged["a"] == [1.0]
    train.clear()  # as TRL's log does
    kept.add("train", {"a": (3.0, 1.0)}, train)
    assert train == {"a": [3.0]}


def test_repetition_is_of_trigrams():
    assert repetition([1, 2, 1, 2, 1, 2]) == 0.5, "two of four trigrams were there before, three of five pairs"
    assert repetition([1, 2, 3, 4, 1, 2]) == repetition([1, 2]) == 0.0


def stats_of(k: int = 2, b: int = 3, c: int = 4) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = ("loss", "divergence", "clipped", "mass_p", "teacher_logps", "teacher_entropy", "of_a_new_kind")
    stats = {name: 5 * torch.randn(k, b, c, generator=generator) for name in names}
    stats |= {name: torch.randn(b, c, generator=generator) for name in ("student_logps", "student_entropy")}
    shares = torch.rand(k, b, c, generator=generator)
    shares[:, :, 0] = shares[0, 1] = shares[:, 2] = 0
    stats["divergence"][:, 2] = torch.inf  # not distilled
    return stats, shares


def means(names, stats, shares):
    """Of a micro-batch by name in the log, on two ranks that hold the same."""
    ranks = TwoRanks()
    sums = reduce_sums(ranks, token_sums(names, stats, shares))
    assert ranks.reductions == 1
    return {name: total / count for name, (total, count) in sums.items()}


def test_token_sums_are_of_whatever_statistics_there_are():
    stats, shares = stats_of()
    got = means(["one", "other"], stats, shares)

    def mean(value, weights=shares):
        return float(value.expand_as(weights)[weights > 0] @ weights[weights > 0] / weights.sum())

    gap = stats["teacher_logps"] - stats["student_logps"]
    first = torch.zeros(2, 3, 4)
    first[0, 0, 1] = first[1, :2, 1] = 1
    want = {
        "loss": mean(stats["loss"]),
        "divergence": mean(stats["divergence"]),
        "clipped_share": mean(stats["clipped"]),
        "topk_mass/student": mean(stats["mass_p"]),
        "teacher_entropy": mean(stats["teacher_entropy"]),
        "of_a_new_kind": mean(stats["of_a_new_kind"]),
        "gap/mean": mean(gap),
        "gap/tail": mean((gap.abs() > 2).float()),
        "student_entropy": mean(stats["student_entropy"]),
        "first_token_divergence": mean(stats["divergence"], first),
        "divergence/one": mean(stats["divergence"][:1], (shares[:1] > 0).float()),
        "divergence/other": mean(stats["divergence"][1:], (shares[1:] > 0).float()),
    }
    assert got == pytest.approx({f"self_distillation/{name}": value for name, value in want.items()}, rel=1e-5)


def test_nothing_distilled_has_no_metrics():
    stats, shares = stats_of()
    assert means(["one", "other"], stats, torch.zeros_like(shares)) == {}
    only = shares.clone()
    only[0] = 0
    assert "self_distillation/divergence/one" not in means(["one", "other"], stats, only)


def test_a_new_statistic_of_the_loss_is_logged(make_trainer, monkeypatch):
    """What losses/token_loss.py gives under a name stands in the log under it."""
    loss, names = tile.token_loss, forward_pass.token_loss_stats

    def with_overlap(pair, spec):
        result = loss(pair, spec)
        return replace(result, stats=result.stats | {"overlap": torch.minimum(pair.p, pair.q).sum(-1)})

    monkeypatch.setattr(tile, "token_loss", with_overlap)
    monkeypatch.setattr(forward_pass, "token_loss_stats", lambda spec: (*names(spec), "overlap"))
    trainer = make_trainer(max_steps=1)
    trainer.train()
    (log,) = (entry for entry in trainer.state.log_history if "self_distillation/loss" in entry)
    assert 0 < log["self_distillation/overlap"] < 1 and "self_distillation/topk_mass/student" not in log
