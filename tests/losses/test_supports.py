# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Divergences on a top-k set S, against the reference of `reference.py`. Legend: N tokens, V vocabulary."""

from dataclasses import replace

import pytest
import torch

from loss_cases import (
    ENTRY_CLIPS,
    KINDS,
    TOKEN_CLIPS,
    check,
    every_corner,
    every_kind,
    library,
    make_spec,
    named,
    random_logits,
    tolerance_of,
)
from pairwise import pairwise
from trl_opsd.losses import DivergenceSpec, Pair, token_loss
from trl_opsd.losses.support import top_k_support


SOURCES, DTYPES = ["student", "teacher", "union"], [torch.float32, torch.float64]

every_source = pytest.mark.parametrize("source", SOURCES)


def set_of(student: torch.Tensor, teacher: torch.Tensor, source: str, k: int) -> torch.Tensor:
    """The mask of S, `(N, V)`."""
    masks = [
        torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.topk(k).indices, True)
        for logits in (student, teacher)
    ]
    return {"student": masks[0], "teacher": masks[1], "union": masks[0] | masks[1]}[source]


@pytest.mark.parametrize(("kind", "source", "dtype"), pairwise(kind=list(KINDS), source=SOURCES, dtype=DTYPES))
def test_thin_tail(kind, source, dtype):
    # The set holds all but 1e-4 ... 1e-30 of the one and another such part of the other: 1 - mass would cancel
    thin = torch.logspace(-4, -30, 8, dtype=torch.float64)
    student, teacher = (logits.to(dtype) for logits in random_logits(n=64, v=9, seed=6, spread=0.5))
    student[:, 3:] += thin.log().repeat_interleave(8).unsqueeze(1).to(dtype)
    teacher[:, 3:] += thin.log().repeat(8).unsqueeze(1).to(dtype)
    spec = make_spec(kind, topk=3, topk_source=source, add_tail=True)
    got = library(student, teacher, spec)
    assert got.loss.isfinite().all() and got.gradient.isfinite().all()
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    check(student, teacher, spec, **tolerance)


@pytest.mark.parametrize(
    ("kind", "entry_clip", "dtype", "add_tail"),
    pairwise(kind=list(KINDS), entry_clip=list(ENTRY_CLIPS), dtype=DTYPES, add_tail=[False, True]),
)
def test_whole_vocabulary_as_set(kind, entry_clip, dtype, add_tail):
    student, teacher = (logits.to(dtype) for logits in random_logits(n=30, seed=8))
    full = make_spec(kind, "full", entry_clip)
    want = library(student, teacher, full)
    for source in ("student", "teacher", "union"):
        got = library(student, teacher, replace(full, topk=9, topk_source=source, add_tail=add_tail))
        whole = torch.ones_like(want.loss)  # what the set holds of each side
        wants = {**want.stats, "gradient": want.gradient, "mass_p": whole, "mass_q": whole}
        for name, value in {**got.stats, "gradient": got.gradient}.items():
            torch.testing.assert_close(value, wants.pop(name), **tolerance_of(dtype), msg=named(name))
        assert not wants


@every_kind
def test_top_1_with_tail_is_a_divergence_of_two_classes(kind):
    student, teacher = random_logits(seed=9)
    for source, logits in (("student", student), ("teacher", teacher)):
        got = library(student, teacher, make_spec(kind, topk=1, topk_source=source, add_tail=True))
        top = logits.argmax(-1, keepdim=True)
        pair = [d.softmax(-1).gather(1, top) for d in (student, teacher)]
        log_p, log_q = (torch.cat([x, 1 - x], 1).log() for x in pair)
        torch.testing.assert_close(got.loss, token_loss(Pair.of(log_p, log_q), make_spec(kind)).loss)
        torch.testing.assert_close(got.stats["mass_p"], pair[0].squeeze(1))
        torch.testing.assert_close(got.stats["mass_q"], pair[1].squeeze(1))


def test_top_1_without_tail_says_nothing_and_is_refused():
    pair = Pair.of(*(logits.log_softmax(-1) for logits in random_logits(seed=9)))
    support = top_k_support(pair, DivergenceSpec(topk=1, add_tail=True))
    alone = support.pair.log_p[:, :1].log_softmax(-1), support.pair.log_q[:, :1].log_softmax(-1)
    assert (token_loss(Pair.of(*alone), DivergenceSpec()).loss == 0).all()
    with pytest.raises(ValueError, match="`topk=1` renormalised"):
        DivergenceSpec(topk=1)


@every_corner
def test_gradient_leaves_the_rest_alone_without_tail(kind, support):
    student, teacher = random_logits(seed=10)
    spec = make_spec(kind, support)
    gradient = library(student, teacher, spec).gradient
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(12, dtype=torch.float64))
    if spec.topk is None:
        return
    moved = gradient != 0
    inside = set_of(student, teacher, spec.topk_source, spec.topk)
    assert moved.all() if spec.add_tail else torch.equal(moved, inside)


@every_kind
@pytest.mark.parametrize("add_tail", [False, True], ids=["", "tail"])
def test_union(kind, add_tail):
    # Sets that coincide, overlap and share nothing
    student, teacher = random_logits(n=3, v=12, seed=18, spread=0.3)
    student[:, :2] += 4.0
    teacher[0, :2] += 4.0
    teacher[1, 1:3] += 4.0
    teacher[2, 2:4] += 4.0
    spec = make_spec(kind, topk=2, topk_source="union", add_tail=add_tail)
    inside = set_of(student, teacher, "union", 2)
    assert inside.sum(-1).tolist() == [2, 3, 4]
    check(student, teacher, spec)
    got = library(student, teacher, spec)
    torch.testing.assert_close(got.stats["mass_p"], (student.softmax(-1) * inside).sum(-1))
    torch.testing.assert_close(got.stats["mass_q"], (teacher.softmax(-1) * inside).sum(-1))
    # Where both have the same set, it is the set of either
    one = library(student[:1], teacher[:1], replace(spec, topk_source="student"))
    torch.testing.assert_close(got.gradient[:1], one.gradient)
    for name in ("loss", "mass_p", "mass_q"):
        torch.testing.assert_close(got.stats[name][:1], one.stats[name], msg=named(name))


@every_source
@pytest.mark.parametrize("token_clip", TOKEN_CLIPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stop_gradient(source, token_clip, dtype):
    for temperature in (0.7, 1.0):
        spec = make_spec(
            "reverse_kl",
            "full",
            "",
            token_clip,
            topk=4,
            topk_source=source,
            stop_gradient=True,
            temperature=temperature,
        )
        student, teacher = (logits.to(dtype) for logits in random_logits(n=20, seed=19))
        check(student, teacher, spec, **tolerance_of(dtype))
        for logits in (student, teacher):
            logits[3, 5] = logits[4, 0] = -torch.inf
        check(student, teacher, spec, **tolerance_of(dtype))
        same = library(student, student.clone(), spec)
        assert (same.loss == 0).all() and (same.gradient == 0).all()


@every_source
def test_stop_gradient_in_words(source):
    student, teacher = random_logits(seed=20)
    inside = set_of(student, teacher, source, 4)
    p, q = student.softmax(-1), teacher.softmax(-1)
    ratio = (p / q).log() * inside
    got = library(student, teacher, make_spec("reverse_kl", topk=4, topk_source=source, stop_gradient=True))
    torch.testing.assert_close(got.loss, (p * ratio).sum(-1))
    torch.testing.assert_close(got.gradient, p * (ratio - (p * ratio).sum(-1, keepdim=True)))
    assert (got.gradient[~inside] != 0).all()
    torch.testing.assert_close(got.stats["mass_p"], (p * inside).sum(-1))
    # Over the whole vocabulary, its gradient is that of the reverse KL
    whole = library(student, teacher, make_spec("reverse_kl", topk=9, topk_source=source, stop_gradient=True))
    plain = library(student, teacher, make_spec("reverse_kl"))
    torch.testing.assert_close(whole.gradient, plain.gradient)
    torch.testing.assert_close(whole.loss, plain.loss)
