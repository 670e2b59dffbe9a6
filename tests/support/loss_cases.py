# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Inputs and comparisons of the tests of `trl_opsd.losses`. Legend: N tokens, V vocabulary."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch

import reference
from pairwise import pairwise
from trl_opsd.losses import DivergenceSpec, Pair, TokenLoss, stat_names, token_loss


KINDS = {
    "forward_kl": {"divergence": "forward_kl"},
    "reverse_kl": {"divergence": "reverse_kl"},
    "jsd-0.3": {"divergence": "jsd", "alpha": 0.3},
    "jsd-0.5": {"divergence": "jsd", "alpha": 0.5},
    "skew_kl-0.1": {"divergence": "skew_kl", "alpha": 0.1},
    "skew_kl-0.5": {"divergence": "skew_kl", "alpha": 0.5},
}
SUPPORTS = {
    "full": {},
    "student": {"topk": 4, "topk_source": "student"},
    "student-tail": {"topk": 4, "topk_source": "student", "add_tail": True},
    "teacher": {"topk": 4, "topk_source": "teacher"},
    "teacher-tail": {"topk": 4, "topk_source": "teacher", "add_tail": True},
    "union": {"topk": 3, "topk_source": "union"},
    "union-tail": {"topk": 2, "topk_source": "union", "add_tail": True},
    "top1-tail": {"topk": 1, "add_tail": True},
}
ENTRY_CLIPS = {
    "": {},
    "signed": {"entry_clip": 0.05, "entry_clip_mode": "signed"},
    "non_negative": {"entry_clip": 0.05, "entry_clip_mode": "non_negative"},
}
TOKEN_CLIPS = {"": {}, "clip": {"token_clip": 0.1}}
CLIPS = list(product(ENTRY_CLIPS, TOKEN_CLIPS))
DOUBLE = {"rtol": 1e-9, "atol": 1e-11}
SINGLE = {"rtol": 2e-5, "atol": 2e-6}

every_kind = pytest.mark.parametrize("kind", KINDS)
every_entry_clip = pytest.mark.parametrize("entry_clip", ENTRY_CLIPS)


def corners(**options: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Pairwise corners of the divergence, the source of the support, its tail and these options."""
    sources = ["full", "student", "teacher", "union", "top1"]
    found = []
    for kind, source, tail, *rest in pairwise(kind=list(KINDS), source=sources, tail=[False, True], **options):
        has_tail = source == "top1" or (tail and source != "full")
        found.append((kind, source + "-tail" * has_tail, *rest))
    return list(dict.fromkeys(found))


every_corner = pytest.mark.parametrize(("kind", "support"), corners())


def make_spec(kind: str, support: str = "full", entry_clip: str = "", token_clip: str = "", **other) -> DivergenceSpec:
    return DivergenceSpec(
        **(KINDS[kind] | SUPPORTS[support] | ENTRY_CLIPS[entry_clip] | TOKEN_CLIPS[token_clip] | other)
    )


def random_logits(n: int = 12, v: int = 9, seed: int = 0, spread: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of student and teacher, some tokens alike and some far apart."""
    generator = torch.Generator().manual_seed(seed)
    student, noise = torch.randn(2, n, v, generator=generator, dtype=torch.float64) * spread
    return student, student + noise * torch.linspace(0.05, 1.5, n, dtype=torch.float64).unsqueeze(1)


def tolerance_of(dtype: torch.dtype) -> dict[str, float]:
    return SINGLE if dtype == torch.float32 else DOUBLE


def library(student: torch.Tensor, teacher: torch.Tensor, spec: DivergenceSpec) -> TokenLoss:
    """The library's result, from logits."""
    return token_loss(Pair.of(*((logits / spec.temperature).log_softmax(-1) for logits in (student, teacher))), spec)


def expected(student: torch.Tensor, teacher: torch.Tensor, spec: DivergenceSpec) -> tuple[dict, torch.Tensor]:
    """The reference's result and its gradient on logits / temperature."""
    leaf = student.double().clone().requires_grad_()
    result = reference.token_losses(leaf, teacher, spec)
    (gradient,) = torch.autograd.grad(result["loss"].sum(), leaf)
    return result, gradient * spec.temperature


def check(student: torch.Tensor, teacher: torch.Tensor, spec: DivergenceSpec, **tolerance) -> None:
    """Everything that the library returns; gradients only where the loss is finite, as there are none elsewhere."""
    tolerance = tolerance or DOUBLE
    got, (want, gradient) = library(student, teacher, spec), expected(student, teacher, spec)
    assert tuple(got.stats) == stat_names(spec) and got.loss is got.stats["loss"]
    for name, value in got.stats.items():
        torch.testing.assert_close(value.double(), want[name].detach(), **tolerance, msg=named(name, spec))
    finite = want["loss"].detach().isfinite()
    torch.testing.assert_close(
        got.gradient[finite].double(), gradient[finite], **tolerance, msg=named("gradient", spec)
    )


def named(*name):
    """The message of a comparison, with what was compared in front."""
    return lambda message: f"{name}: {message}"
