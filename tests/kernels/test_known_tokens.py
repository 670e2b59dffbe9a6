# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The divergence from few known log-probabilities of the teacher, beside the dense reference that knows them all.

Legend: M distilled tokens, V vocabulary, K views, k known tokens.
"""

from dataclasses import dataclass

import pytest
import torch

import reference
from kernel_cases import DOUBLE, SINGLE, Case, V, check, make, tiles_of
from trl_opsd.kernels import KnownTokens, LinearDivergenceInputs
from trl_opsd.kernels.known_tokens import LEAST_REST, completed
from trl_opsd.losses import DivergenceSpec


SPECS = {
    "forward": DivergenceSpec("forward_kl", topk=4, topk_source="teacher"),
    "forward-tail": DivergenceSpec("forward_kl", topk=4, topk_source="teacher", add_tail=True),
    "reverse-tail": DivergenceSpec(
        "reverse_kl", topk=3, topk_source="teacher", add_tail=True, temperature=1.4, teacher_temperature=1.0
    ),
    "jsd": DivergenceSpec("jsd", alpha=0.3, topk=4, topk_source="teacher", token_clip=0.3),
    "skew-tail": DivergenceSpec("skew_kl", alpha=0.2, topk=2, topk_source="teacher", add_tail=True),
    "stop-gradient": DivergenceSpec("reverse_kl", topk=3, topk_source="teacher", stop_gradient=True),
    "entry-clip": DivergenceSpec("forward_kl", topk=4, topk_source="teacher", entry_clip=0.05, is_clip=1.2),
    "top1-tail": DivergenceSpec("forward_kl", topk=1, topk_source="teacher", add_tail=True),
    "whole": DivergenceSpec("reverse_kl", topk=V, topk_source="teacher"),
    "by-view": DivergenceSpec(
        "forward_kl", topk=3, topk_source="teacher", add_tail=True, view_divergences={"b": "reverse_kl"}
    ),
}


@dataclass
class Known(Case):
    """A case whose teacher is known at its k likeliest tokens and at the labels."""

    def known(self, k: int) -> KnownTokens:
        m = self.weights.shape[1]
        logits = [
            reference.head_logits(v, self.teacher_weight, self.teacher_bias, 1.0, None) for v in self.teacher_hidden
        ]
        log_q = torch.stack(logits).log_softmax(-1)  # (K, M, V)
        top = log_q.topk(k, dim=-1)
        labels = self.labels[:m].expand(len(log_q), m).unsqueeze(-1)
        return KnownTokens(top.indices, top.values, log_q.gather(-1, labels).squeeze(-1))

    def task(self, spec: DivergenceSpec) -> LinearDivergenceInputs:
        task = super().task(spec)
        task.known = self.known(spec.topk)
        task.teacher_hidden, task.teacher_heads = self.teacher_hidden.new_zeros(0, self.weights.shape[1], 0), []
        return task

    def run(self, spec: DivergenceSpec):
        loss, stats = super().run(spec)
        assert stats["teacher_entropy"].isnan().all(), "which nobody knows"
        return loss, {name: value for name, value in stats.items() if name != "teacher_entropy"}

    def expected(self, spec: DivergenceSpec):
        loss, stats = super().expected(spec)
        return loss, {name: value for name, value in stats.items() if name != "teacher_entropy"}


def known_case(**options) -> Known:
    return Known(**vars(make(**options)))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("k", [1, 3])
def test_against_the_reference_that_knows_all(name, k, monkeypatch):
    tiles_of(monkeypatch, 3)
    check(known_case(k=k), SPECS[name], factor=0.7, **DOUBLE)


@pytest.mark.parametrize("name", SPECS)
def test_float32(name):
    check(known_case(dtype=torch.float32, seed=3), SPECS[name], **SINGLE)


def test_a_teacher_that_is_nearly_sure():
    """Its tail is beyond what 1 minus a sum tells in float32; the loss stays near the true one."""
    case = known_case(dtype=torch.float32, seed=5)
    case.teacher_weight.mul_(40)
    spec = SPECS["reverse-tail"]
    (loss, stats), (_, wanted) = case.run(spec), case.expected(spec)
    assert (1 - wanted["mass_q"]).min() < LEAST_REST and loss.isfinite()
    torch.testing.assert_close(stats["teacher_logps"].double(), wanted["teacher_logps"], **SINGLE)
    forward = DivergenceSpec("forward_kl", topk=3, topk_source="teacher", add_tail=True)
    torch.testing.assert_close(case.run(forward)[0].double(), case.expected(forward)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_the_completed_distribution(spread):
    draw = torch.Generator().manual_seed(0)
    log_q = (spread * torch.randn(50, 300, generator=draw)).log_softmax(-1)
    labels = torch.randint(300, (50,), generator=draw)
    top = log_q.topk(20, dim=-1)
    full = completed(top.indices, top.values, labels, log_q[torch.arange(50), labels], 300)
    torch.testing.assert_close(full.double().logsumexp(-1), torch.zeros(50, dtype=torch.float64), rtol=0, atol=2e-6)
    again = full.topk(20, dim=-1)
    assert torch.equal(again.values, top.values), "no token of the rest comes into the set"
    assert torch.equal(full[torch.arange(50), labels], log_q[torch.arange(50), labels].clamp(min=-1e37))
    rest = full.scatter(-1, top.indices, torch.nan).scatter(-1, labels.unsqueeze(-1), torch.nan)
    assert all(len(row[~row.isnan()].unique()) == 1 for row in rest), "they share evenly"


def test_tokens_that_the_student_lacks_leave_the_label_in_their_places():
    log_q = torch.tensor([0.5, 0.3, 0.1]).log()
    ids, logps = torch.tensor([[0, 1, 2]]), log_q.unsqueeze(0)
    full = completed(ids, logps, torch.tensor([2]), log_q[2:], 5)
    filled = completed(torch.tensor([[0, 1, 2, 2, 2]]), torch.cat([logps, log_q[2].expand(1, 2)], 1),
                       torch.tensor([2]), log_q[2:], 5)  # fmt: skip
    assert torch.equal(full, filled)
    torch.testing.assert_close(full.exp(), torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.05]]))
