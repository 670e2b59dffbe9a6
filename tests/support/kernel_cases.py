# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Inputs and comparisons of the tests of `trl_opsd.kernels`.

Legend: N tokens, the first M of them distilled, H hidden size of the student, V vocabulary, K views.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

import reference
from devices import device
from trl_opsd.kernels import Head, LinearDivergenceInputs, PolicyTerm, chunks, linear_divergence, tile
from trl_opsd.losses import DivergenceSpec


H, TEACHER_H, V = 6, 4, 11
SPECS = {
    "forward": DivergenceSpec("forward_kl"),
    "reverse": DivergenceSpec("reverse_kl", temperature=0.7),
    "jsd": DivergenceSpec("jsd", alpha=0.3, temperature=1.6),
    "skew": DivergenceSpec("skew_kl", alpha=0.1, temperature=0.9),
    "topk": DivergenceSpec("jsd", alpha=0.5, topk=4, topk_source="teacher"),
    "tail": DivergenceSpec("reverse_kl", topk=3, add_tail=True, temperature=1.3),
    "union": DivergenceSpec("forward_kl", topk=3, topk_source="union"),
    "union-tail": DivergenceSpec("skew_kl", alpha=0.5, topk=2, topk_source="union", add_tail=True, temperature=1.2),
    "stop-gradient": DivergenceSpec("reverse_kl", topk=3, stop_gradient=True, temperature=0.9),
    "entry-clip": DivergenceSpec("forward_kl", entry_clip=0.05, temperature=0.8),
    "non-negative": DivergenceSpec("reverse_kl", entry_clip=0.05, entry_clip_mode="non_negative"),
    "hard": DivergenceSpec("forward_kl", token_clip=2.5, temperature=0.9),
    "clipped-jsd": DivergenceSpec("jsd", alpha=0.3, token_clip=0.3),
    "is-clip": DivergenceSpec("forward_kl", is_clip=1.2, temperature=0.9),
    "teacher-temperature": DivergenceSpec("forward_kl", temperature=0.9, teacher_temperature=0.5),
    "tempered-tail": DivergenceSpec("reverse_kl", topk=3, add_tail=True, teacher_temperature=1.7),
    "by-view": DivergenceSpec("forward_kl", view_divergences={"b": "reverse_kl"}, temperature=0.8),
    "arithmetic": DivergenceSpec("reverse_kl", target="arithmetic", temperature=1.4, teacher_temperature=0.7),
    "geometric": DivergenceSpec("jsd", alpha=0.3, target="geometric", temperature=0.8, is_clip=1.2),
}
TARGETS = ("arithmetic", "geometric")
TRANSFORMS = [{}, {"scale": 0.4}, {"softcap": 1.5}, {"scale": 2.5, "softcap": 2.0}]
DOUBLE = {"rtol": 1e-9, "atol": 1e-11}
SINGLE = {"rtol": 5e-5, "atol": 5e-6}

every_spec = pytest.mark.parametrize("name", SPECS)
every_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=str)


@dataclass
class Case:
    """Arguments of `linear_divergence`."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    teacher_hidden: torch.Tensor
    teacher_weight: torch.Tensor
    teacher_bias: torch.Tensor | None
    labels: torch.Tensor
    weights: torch.Tensor
    old_logps: torch.Tensor | None
    transform: dict = field(default_factory=dict)  # of the student's head
    teacher_transform: dict = field(default_factory=dict)
    policy: PolicyTerm | None = None
    chunk_size: int | None = None
    names: str = "abcdef"  # of the views

    def leaves(self) -> list[torch.Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None and x.requires_grad]

    def head(self) -> Head:
        return Head(self.weight, self.bias, **self.transform)

    def task(self, spec: DivergenceSpec) -> LinearDivergenceInputs:
        return LinearDivergenceInputs(
            head=self.head(),
            teacher_hidden=self.teacher_hidden,
            teacher_heads=[Head(self.teacher_weight, self.teacher_bias, **self.teacher_transform)] * len(self.weights),
            labels=self.labels,
            weights=self.weights,
            spec=spec,
            view_specs=[spec.of_view(name) for name in self.names] if spec.view_divergences else None,
            old_logps=self.old_logps,
            policy=self.policy,
            chunk_size=self.chunk_size,
        )

    def run(self, spec: DivergenceSpec) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return linear_divergence(self.hidden, self.task(spec))

    def gradients(self, spec: DivergenceSpec) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(self.run(spec)[0], self.leaves())

    def expected(self, spec: DivergenceSpec) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        def logits(hidden, weight, bias, scale=1.0, softcap=None, float32=False):
            return reference.head_logits(hidden, weight, bias, scale, softcap)

        teacher = [
            logits(view, self.teacher_weight, self.teacher_bias, **self.teacher_transform).detach()
            for view in self.teacher_hidden
        ]
        student, m = logits(self.hidden, self.weight, self.bias, **self.transform), self.weights.shape[1]
        others = self.old_logps, self.names
        total, stats = reference.dense_loss(student[:m], teacher, self.labels[:m], self.weights, spec, *others)
        if self.policy is not None:
            total = total + reference.policy_loss(student, self.labels, self.policy.loss, self.policy.temperature)
        return total, stats


def make(n=10, k=2, dtype=torch.float64, bias=True, seed=0, v=V, m=None, **other) -> Case:
    """A random case, the same numbers on every device. Weights and old log-probabilities are float32, or float64 with
    such inputs."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    m = n if m is None else m

    def randn(*shape, to=dtype):
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
        return drawn.to(device(), to)

    weights = torch.rand(k, m, generator=generator, dtype=torch.float64, device="cpu").to(device(), wide) + 0.1
    weights[:, 1::4] = 0  # a masked token
    weights[-1, 2::4] = 0  # a view that a row lacks
    return Case(
        hidden=randn(n, H).requires_grad_(),
        weight=randn(v, H).mul_(0.6).requires_grad_(),
        bias=randn(v).requires_grad_() if bias else None,
        teacher_hidden=randn(k, m, TEACHER_H),
        teacher_weight=randn(v, TEACHER_H).mul_(0.6),
        teacher_bias=randn(v) if bias else None,
        labels=torch.randint(v, (n,), generator=generator, device="cpu").to(device()),
        weights=weights,
        old_logps=randn(m, to=wide) - 2.5,
        **other,
    )


def drawn(draw: Callable[..., torch.Tensor], *shape: int, seed: int) -> torch.Tensor:
    """`torch.rand` or `torch.randn` in float64, with the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    return draw(*shape, generator=generator, dtype=torch.float64, device="cpu").to(device())


def check(case: Case, spec: DivergenceSpec, factor: float = 1.0, **tolerance) -> None:
    """Value, statistics, and gradients of `factor` times the loss."""
    tolerance = tolerance or DOUBLE
    got, stats = case.run(spec)
    want, want_stats = case.expected(spec)
    torch.testing.assert_close(got.double(), want, **tolerance, msg=lambda message: f"loss: {message}")
    assert set(stats) == set(want_stats)
    for name, value in want_stats.items():
        assert not stats[name].requires_grad
        torch.testing.assert_close(stats[name].double(), value, **tolerance, msg=lambda text, n=name: f"{n}: {text}")
    leaves = case.leaves()
    gradients = torch.autograd.grad(got * factor, leaves)
    want_gradients = torch.autograd.grad(want * factor, leaves)
    for leaf, gradient, want_gradient in zip(leaves, gradients, want_gradients, strict=True):
        assert gradient.dtype == leaf.dtype and gradient.shape == leaf.shape
        torch.testing.assert_close(gradient, want_gradient, **tolerance)


def close(gots, wants, **tolerance) -> None:
    """Compare tensors one by one."""
    for got, want in zip(gots, wants, strict=True):
        torch.testing.assert_close(got, want, **(tolerance or DOUBLE))


def tiles_of(monkeypatch, tokens: int, v: int = V) -> list[int]:
    """Cut chunks in tiles of this size. Returns a list that fills with the sizes of the tiles, once for each view."""
    seen, inner = [], tile.token_loss

    def token_loss(pair, spec):
        seen.append(len(pair.p))
        return inner(pair, spec)

    for name in ("_CPU_TILE", "_TILE"):
        monkeypatch.setattr(chunks, name, tokens * v + v // 2)
    monkeypatch.setattr(tile, "token_loss", token_loss)
    return seen
