# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`trl_opsd.losses` against the dense reference of `reference.py`. Legend: N tokens, V vocabulary, K views."""

from dataclasses import replace

import pytest
import torch

import reference
from trl_opsd.losses import (
    DivergenceSpec,
    distillation_mask,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    token_loss,
    token_weights,
    view_shares,
)


ALPHAS = (0.0, 1.0, 0.3, 0.5)
SUPPORTS = {
    "full": {},
    "student": {"topk": 4, "topk_source": "student"},
    "student-tail": {"topk": 4, "topk_source": "student", "add_tail": True},
    "teacher": {"topk": 4, "topk_source": "teacher"},
    "teacher-tail": {"topk": 4, "topk_source": "teacher", "add_tail": True},
    "top1-tail": {"topk": 1, "add_tail": True},
}
ENTRY_CLIPS = {
    "": {},
    "signed": {"entry_clip": 0.05, "entry_clip_mode": "signed"},
    "non_negative": {"entry_clip": 0.05, "entry_clip_mode": "non_negative"},
}
TOKEN_CLIPS = {
    "": {},
    "hard": {"token_clip": 0.1, "token_clip_mode": "hard"},
    "scale": {"token_clip": 0.1, "token_clip_mode": "scale"},
}

every_alpha = pytest.mark.parametrize("alpha", ALPHAS)
every_support = pytest.mark.parametrize("support", SUPPORTS)
every_entry_clip = pytest.mark.parametrize("entry_clip", ENTRY_CLIPS)
every_token_clip = pytest.mark.parametrize("token_clip", TOKEN_CLIPS)


def make_spec(alpha: float, support: str, entry_clip: str = "", token_clip: str = "", **other) -> DivergenceSpec:
    options = SUPPORTS[support] | ENTRY_CLIPS[entry_clip] | TOKEN_CLIPS[token_clip] | other
    return DivergenceSpec(alpha=alpha, **options)


def random_logits(n: int = 12, v: int = 9, seed: int = 0, spread: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of student and teacher, some tokens alike and some far apart."""
    generator = torch.Generator().manual_seed(seed)
    student, noise = torch.randn(2, n, v, generator=generator, dtype=torch.float64) * spread
    return student, student + noise * torch.linspace(0.05, 1.5, n, dtype=torch.float64).unsqueeze(1)


def library(student: torch.Tensor, teacher: torch.Tensor, spec: DivergenceSpec):
    """The library's result, from logits."""
    log_p, log_q = ((logits / spec.temperature).log_softmax(-1) for logits in (student, teacher))
    return token_loss(log_p, log_q, spec)


def expected(student: torch.Tensor, teacher: torch.Tensor, spec: DivergenceSpec) -> tuple[dict, torch.Tensor]:
    """The reference's result and its gradient on logits / temperature."""
    leaf = student.double().clone().requires_grad_()
    result = reference.token_losses(leaf, teacher, spec)
    (gradient,) = torch.autograd.grad(result["loss"].sum(), leaf)
    return result, gradient * spec.temperature


def check(student: torch.Tensor, teacher: torch.Tensor, spec: DivergenceSpec, **tolerance) -> None:
    """Everything that the library returns; gradients only where the loss is finite, as there are none elsewhere."""
    tolerance = tolerance or {"rtol": 1e-9, "atol": 1e-11}
    got, (want, gradient) = library(student, teacher, spec), expected(student, teacher, spec)
    for name in ("loss", "divergence", "clipped", "mass_p", "mass_q"):
        torch.testing.assert_close(getattr(got, name).double(), want[name].detach(), **tolerance, msg=_named(name))
    finite = want["loss"].detach().isfinite()
    torch.testing.assert_close(got.gradient[finite].double(), gradient[finite], **tolerance, msg=_named("gradient"))


def _named(name: str):
    return lambda message: f"{name}: {message}"


@every_alpha
@every_support
@every_entry_clip
@every_token_clip
def test_values_and_gradients(alpha, support, entry_clip, token_clip):
    spec = make_spec(alpha, support, entry_clip, token_clip, temperature=0.7)
    check(*random_logits(), spec)


@every_alpha
@every_support
def test_temperatures(alpha, support):
    for temperature in (0.5, 1.0, 3.0):
        check(*random_logits(seed=1), make_spec(alpha, support, temperature=temperature))


@every_alpha
@every_support
@every_entry_clip
@every_token_clip
def test_float32(alpha, support, entry_clip, token_clip):
    spec = make_spec(alpha, support, entry_clip, token_clip)
    student, teacher = (logits.float() for logits in random_logits(v=40, seed=2))
    got = library(student, teacher, spec)
    assert got.loss.dtype == got.gradient.dtype == torch.float32
    check(student, teacher, spec, rtol=2e-5, atol=2e-6)


def test_clips_of_these_tests_bind_some_tokens_and_not_others():
    # Or else the comparisons above would compare nothing
    student, teacher = random_logits()
    for alpha in ALPHAS:
        for support in ("full", "student", "student-tail", "teacher-tail"):
            for mode in ("signed", "non_negative"):
                clipped = library(student, teacher, make_spec(alpha, support, mode)).clipped
                assert (clipped == 0).any() and ((clipped > 0) & (clipped < 1)).any()
            clipped = library(student, teacher, make_spec(alpha, support, "", "hard")).clipped
            assert set(clipped.tolist()) == {0.0, 1.0}


def test_divergences_by_name():
    student, teacher = (logits.log_softmax(-1) for logits in random_logits())
    p, q = student.exp(), teacher.exp()
    kl_qp, kl_pq = (q * (q / p).log()).sum(-1), (p * (p / q).log()).sum(-1)
    m = 0.7 * p + 0.3 * q
    jsd = 0.3 * (q * (q / m).log()).sum(-1) + 0.7 * (p * (p / m).log()).sum(-1)
    torch.testing.assert_close(forward_kl(student, teacher)[0].sum(-1), kl_qp)
    torch.testing.assert_close(reverse_kl(student, teacher)[0].sum(-1), kl_pq)
    torch.testing.assert_close(generalized_jsd(student, teacher, 0.3)[0].sum(-1), jsd)
    for alpha, want in ((0.0, kl_qp), (1.0, kl_pq), (0.3, jsd)):
        torch.testing.assert_close(token_loss(student, teacher, DivergenceSpec(alpha=alpha)).loss, want)


def test_jsd_tends_to_the_kls():
    # alpha -> 0: D / alpha -> KL(q||p); alpha -> 1: D / (1 - alpha) -> KL(p||q)
    student, teacher = random_logits(seed=3)
    for end, alpha, factor in ((0.0, 1e-6, 1e6), (1.0, 1 - 1e-6, 1e6)):
        near = library(student, teacher, DivergenceSpec(alpha=alpha))
        limit = library(student, teacher, DivergenceSpec(alpha=end))
        torch.testing.assert_close(near.loss * factor, limit.loss, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(near.gradient * factor, limit.gradient, rtol=1e-3, atol=1e-4)


@every_alpha
@every_support
@every_entry_clip
@pytest.mark.parametrize("token_clip", ["", "hard"])
@pytest.mark.parametrize("absent", ["student", "teacher", "both"])
def test_infinite_logits(alpha, support, entry_clip, token_clip, absent):
    student, teacher = random_logits(seed=4)
    if absent in ("student", "both"):
        student[::2, 0] = student[1, 5] = -torch.inf
    if absent in ("teacher", "both"):
        teacher[::2, 0] = teacher[1, 5] = -torch.inf
    spec = make_spec(alpha, support, entry_clip, token_clip)
    check(student, teacher, spec)
    if absent == "both":
        assert library(student, teacher, spec).loss.isfinite().all()


@every_alpha
@every_entry_clip
@pytest.mark.parametrize("absent", ["student", "teacher"])
def test_token_scale_clip_bounds_an_infinite_divergence(alpha, entry_clip, absent):
    student, teacher = random_logits(seed=4)
    (student if absent == "student" else teacher)[::2, 0] = -torch.inf
    got = library(student, teacher, make_spec(alpha, "full", entry_clip, "scale"))
    assert (got.loss <= 0.1).all()
    assert got.gradient.isfinite().all()


@every_alpha
@every_entry_clip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_that_underflow(alpha, entry_clip, dtype):
    # exp is 0 where the logarithm is finite still, and so is the divergence
    low = -300.0 if dtype == torch.float32 else -1500.0
    student, teacher = (logits.to(dtype) for logits in random_logits(seed=5))
    student[0, 0] = low
    teacher[1, 0] = low
    student[2, 0], teacher[2, 0] = low, 1.1 * low
    student[3, 1:], teacher[4, 1:] = low, low
    student[5, 1:], teacher[5, :-1] = low, low
    spec = make_spec(alpha, "full", entry_clip)
    got = library(student, teacher, spec)
    assert got.loss.isfinite().all() and got.gradient.isfinite().all()
    check(student, teacher, spec, **({"rtol": 2e-5, "atol": 2e-6} if dtype == torch.float32 else {}))


@every_alpha
def test_subnormal_probabilities(alpha):
    # Between the least float32, 1.4e-45 = exp(-103.3), and 0
    student = torch.zeros(40, 5)
    teacher = torch.zeros(40, 5)
    teacher[:20, 0] = torch.linspace(-104.5, -86.0, 20)
    student[:20, 0] = -300.0
    student[20:, 0] = torch.linspace(-104.5, -86.0, 20)
    teacher[20:, 0] = -300.0
    check(student, teacher, DivergenceSpec(alpha=alpha), rtol=2e-5, atol=2e-6)


@every_alpha
@pytest.mark.parametrize("source", ["student", "teacher"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thin_tail(alpha, source, dtype):
    # The set holds all but 1e-4 ... 1e-30 of the one and another such part of the other: 1 - mass would cancel
    thin = torch.logspace(-4, -30, 8, dtype=torch.float64)
    student, teacher = (logits.to(dtype) for logits in random_logits(n=64, v=9, seed=6, spread=0.5))
    student[:, 3:] += thin.log().repeat_interleave(8).unsqueeze(1).to(dtype)
    teacher[:, 3:] += thin.log().repeat(8).unsqueeze(1).to(dtype)
    spec = DivergenceSpec(alpha=alpha, topk=3, topk_source=source, add_tail=True)
    got = library(student, teacher, spec)
    assert got.loss.isfinite().all() and got.gradient.isfinite().all()
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    check(student, teacher, spec, **tolerance)


@every_alpha
@every_entry_clip
@every_token_clip
def test_two_tokens(alpha, entry_clip, token_clip):
    student, teacher = random_logits(v=2, seed=7)
    check(student, teacher, make_spec(alpha, "full", entry_clip, token_clip))
    check(student, teacher, make_spec(alpha, "full", entry_clip, token_clip, topk=1, add_tail=True))
    check(student, teacher, make_spec(alpha, "full", entry_clip, token_clip, topk=2))


@every_alpha
@every_entry_clip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("add_tail", [False, True], ids=["", "tail"])
def test_whole_vocabulary_as_set(alpha, entry_clip, dtype, add_tail):
    student, teacher = (logits.to(dtype) for logits in random_logits(n=30, seed=8))
    full = make_spec(alpha, "full", entry_clip)
    want = library(student, teacher, full)
    tolerance = {"rtol": 2e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    for source in ("student", "teacher"):
        got = library(student, teacher, replace(full, topk=9, topk_source=source, add_tail=add_tail))
        for name in ("loss", "divergence", "gradient", "clipped", "mass_p", "mass_q"):
            torch.testing.assert_close(getattr(got, name), getattr(want, name), **tolerance, msg=_named(name))


@every_alpha
def test_top_1_with_tail_is_a_divergence_of_two_classes(alpha):
    student, teacher = random_logits(seed=9)
    for source, logits in (("student", student), ("teacher", teacher)):
        got = library(student, teacher, DivergenceSpec(alpha=alpha, topk=1, topk_source=source, add_tail=True))
        top = logits.argmax(-1, keepdim=True)
        pair = [d.softmax(-1).gather(1, top) for d in (student, teacher)]
        log_p, log_q = (torch.cat([x, 1 - x], 1).log() for x in pair)
        torch.testing.assert_close(got.loss, token_loss(log_p, log_q, DivergenceSpec(alpha=alpha)).loss)
        torch.testing.assert_close(got.mass_p, pair[0].squeeze(1))
        torch.testing.assert_close(got.mass_q, pair[1].squeeze(1))


@every_alpha
def test_top_1_without_tail_says_nothing(alpha):
    got = library(*random_logits(seed=9), DivergenceSpec(alpha=alpha, topk=1))
    assert (got.loss == 0).all() and (got.gradient == 0).all()


@every_alpha
@every_support
def test_gradient_leaves_the_rest_alone_without_tail(alpha, support):
    student, teacher = random_logits(seed=10)
    spec = make_spec(alpha, support)
    gradient = library(student, teacher, spec).gradient
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(12, dtype=torch.float64))
    if spec.topk is None:
        return
    source = student if spec.topk_source == "student" else teacher
    inside = torch.zeros_like(source, dtype=torch.bool).scatter(1, source.topk(spec.topk).indices, True)
    moved = gradient != 0
    assert moved.all() if spec.add_tail else torch.equal(moved, inside)


@every_alpha
@every_support
def test_sign_of_the_clipped_loss(alpha, support):
    student, teacher = random_logits(n=200, seed=11)
    for clip in (0.0, 1e-3, 0.05):
        signed, non_negative = (
            library(student, teacher, replace(make_spec(alpha, support, mode), entry_clip=clip))
            for mode in ("signed", "non_negative")
        )
        assert (non_negative.loss >= 0).all()
        assert (non_negative.loss <= non_negative.divergence + 1e-12).all()
        if alpha in (0.0, 1.0):
            assert (signed.loss < 0).any()
        else:  # entries of the Jensen-Shannon divergence are non-negative as they are
            assert (signed.loss >= 0).all()
            torch.testing.assert_close(signed.loss, non_negative.loss, rtol=0, atol=0)


@every_alpha
@every_support
@every_entry_clip
def test_clips_that_do_not_bind_change_nothing(alpha, support, entry_clip):
    student, teacher = random_logits(seed=12)
    plain = library(student, teacher, make_spec(alpha, support))
    mode = entry_clip or "signed"
    loose = make_spec(alpha, support, mode, "hard" if entry_clip else "scale")
    got = library(student, teacher, replace(loose, entry_clip=1e3, token_clip=1e3))
    torch.testing.assert_close(got.loss, plain.loss)
    torch.testing.assert_close(got.gradient, plain.gradient)
    assert (got.clipped == 0).all()


@every_alpha
@every_support
@pytest.mark.parametrize("mode", ["hard", "scale"])
def test_token_clip(alpha, support, mode):
    student, teacher = random_logits(seed=13)
    plain = library(student, teacher, make_spec(alpha, support))
    spec = make_spec(alpha, support, "", mode)
    got, over = library(student, teacher, spec), plain.loss > spec.token_clip
    assert over.any() and not over.all()
    assert (got.loss[over] == spec.token_clip).all()
    torch.testing.assert_close(got.divergence, plain.divergence, rtol=0, atol=0)
    torch.testing.assert_close(got.gradient[~over], plain.gradient[~over], rtol=0, atol=0)
    factor = 0.0 if mode == "hard" else (spec.token_clip / plain.loss[over]).unsqueeze(1)
    torch.testing.assert_close(got.gradient[over], plain.gradient[over] * factor)


@every_alpha
@every_support
@every_entry_clip
@every_token_clip
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_agreement_gives_exact_zeros(alpha, support, entry_clip, token_clip, temperature):
    generator = torch.Generator().manual_seed(14)
    logits = torch.randn(8, 1000, generator=generator) * torch.tensor([0.1, 1, 2, 4, 8, 16, 64, 256]).unsqueeze(1)
    logits[0, 3] = logits[1, 7] = -torch.inf
    spec = make_spec(alpha, support, entry_clip, token_clip, temperature=temperature)
    for topk in (None,) if spec.topk is None else (1, 20, 999, 1000):
        result = library(logits, logits.clone(), replace(spec, topk=topk))
        assert (result.divergence == 0).all()
        assert (result.loss == 0).all()
        assert (result.gradient == 0).all()
        assert (result.clipped == 0).all()


def test_distillation_mask_counts_model_tokens():
    loss_mask = torch.tensor(
        [
            [1, 1, 1, 1, 1, 0],  # padding at the end
            [1, 0, 0, 1, 1, 1],  # a tool's tokens between the model's
            [0, 0, 0, 0, 0, 0],  # nothing
            [1, 0, 0, 0, 0, 0],  # fewer than are skipped
            [1, 1, 1, 1, 1, 1],  # without a view
        ]
    )
    has_view = torch.tensor([True, True, True, True, False])
    want = torch.tensor(
        [
            [0, 0, 1, 1, 1, 0],
            [0, 0, 0, 0, 1, 1],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ]
    )
    got = distillation_mask(loss_mask, has_view, 2)
    assert torch.equal(got, want) and got.dtype == loss_mask.dtype
    assert torch.equal(distillation_mask(loss_mask, has_view, 0), loss_mask * has_view.long().unsqueeze(1))
    assert torch.equal(distillation_mask(loss_mask.float(), has_view, 2), want.float())
    assert not distillation_mask(loss_mask, has_view, 6).any()


MASK = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])


def test_token_mean():
    weights = token_weights(MASK, "token_mean", torch.tensor(4.0), torch.tensor(2.0))
    torch.testing.assert_close(weights, MASK / 4)
    # The counts are those of all ranks and micro-batches
    torch.testing.assert_close(token_weights(MASK, "token_mean", torch.tensor(10.0), torch.tensor(3.0)), MASK / 10)


def test_sequence_mean():
    weights = token_weights(MASK, "sequence_mean", torch.tensor(4.0), torch.tensor(2.0))
    torch.testing.assert_close(weights, MASK * torch.tensor([[1 / 6], [0.0], [1 / 2]]))
    losses = torch.arange(12.0).view(3, 4)
    torch.testing.assert_close((losses * weights).sum(), torch.tensor(((0 + 1 + 3) / 3 + 9) / 2))
    weights = token_weights(MASK, "sequence_mean", torch.tensor(4.0), torch.tensor(5.0))
    torch.testing.assert_close(weights, MASK * torch.tensor([[1 / 15], [0.0], [1 / 5]]))


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_rows_all_masked(reduction):
    weights = token_weights(torch.zeros(3, 4), reduction, torch.tensor(0.0), torch.tensor(0.0))
    assert torch.equal(weights, torch.zeros(3, 4))


def test_view_shares():
    weights = torch.tensor([[1.0, 2.0, 0.0, 0.0, 1e-30], [3.0, 0.0, 0.0, 0.5, 0.0]])
    want = torch.tensor([[0.25, 1.0, 0.0, 0.0, 1.0], [0.75, 0.0, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(view_shares(weights), want)
    torch.testing.assert_close(view_shares(weights[:1]), torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0]]))
