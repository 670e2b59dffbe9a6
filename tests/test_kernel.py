# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
`trl_opsd.kernels` against the dense reference of `reference.py`.

Legend: N tokens, H hidden size of the student, V vocabulary, K views.
"""

import importlib
from dataclasses import dataclass, field, replace

import pytest
import torch

import reference
from trl_opsd.kernels import Head, linear_divergence
from trl_opsd.losses import DivergenceSpec


# The package's attribute of this name is the function
module = importlib.import_module("trl_opsd.kernels.linear_divergence")

H, TEACHER_H, V = 6, 4, 11
SPECS = {
    "forward": DivergenceSpec(alpha=0.0),
    "reverse": DivergenceSpec(alpha=1.0, temperature=0.7),
    "jsd": DivergenceSpec(alpha=0.3, temperature=1.6),
    "topk": DivergenceSpec(alpha=0.5, topk=4, topk_source="teacher"),
    "tail": DivergenceSpec(alpha=1.0, topk=3, add_tail=True, temperature=1.3),
    "entry-clip": DivergenceSpec(alpha=0.0, entry_clip=0.05, temperature=0.8),
    "non-negative": DivergenceSpec(alpha=1.0, entry_clip=0.05, entry_clip_mode="non_negative"),
    "hard": DivergenceSpec(alpha=0.0, token_clip=2.5, temperature=0.9),
    "scale": DivergenceSpec(alpha=0.3, token_clip=0.3, token_clip_mode="scale"),
    "is-clip": DivergenceSpec(alpha=0.0, is_clip=1.2, temperature=0.9),
}
DOUBLE = {"rtol": 1e-9, "atol": 1e-11}
SINGLE = {"rtol": 5e-5, "atol": 5e-6}

every_spec = pytest.mark.parametrize("name", SPECS)
every_transform = pytest.mark.parametrize(
    "transform", [{}, {"scale": 0.4}, {"softcap": 1.5}, {"scale": 2.5, "softcap": 2.0}], ids=str
)


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

    def leaves(self) -> list[torch.Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None and x.requires_grad]

    def head(self) -> Head:
        return Head(self.weight, self.bias, **self.transform)

    def run(self, spec: DivergenceSpec) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        teacher_head = Head(self.teacher_weight, self.teacher_bias, **self.teacher_transform)
        return linear_divergence(
            self.hidden,
            self.head(),
            self.teacher_hidden,
            teacher_head,
            self.labels,
            self.weights,
            spec,
            self.old_logps,
        )

    def expected(self, spec: DivergenceSpec) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        def logits(hidden, weight, bias, scale=1.0, softcap=None, float32=False):
            return reference.head_logits(hidden, weight, bias, scale, softcap)

        teacher = [
            logits(view, self.teacher_weight, self.teacher_bias, **self.teacher_transform).detach()
            for view in self.teacher_hidden
        ]
        student = logits(self.hidden, self.weight, self.bias, **self.transform)
        return reference.dense_loss(student, teacher, self.labels, self.weights, spec, self.old_logps)


def make(n=10, k=2, dtype=torch.float64, bias=True, seed=0, v=V, **other) -> Case:
    """A random case. Weights and old log-probabilities are float32, or float64 with such inputs."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)

    def randn(*shape, to=dtype):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(to)

    weights = torch.rand(k, n, generator=generator, dtype=torch.float64).to(wide) + 0.1
    weights[:, 1::4] = 0  # a masked token
    weights[-1, 2::4] = 0  # a view that a row lacks
    return Case(
        hidden=randn(n, H).requires_grad_(),
        weight=randn(v, H).mul_(0.6).requires_grad_(),
        bias=randn(v).requires_grad_() if bias else None,
        teacher_hidden=randn(k, n, TEACHER_H),
        teacher_weight=randn(v, TEACHER_H).mul_(0.6),
        teacher_bias=randn(v) if bias else None,
        labels=torch.randint(v, (n,), generator=generator),
        weights=weights,
        old_logps=randn(n, to=wide) - 2.5,
        **other,
    )


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


def chunks_of(monkeypatch, tokens: int, v: int = V) -> list[int]:
    """Cut tokens in chunks of this size. Returns a list that fills with the sizes of the blocks."""
    seen, inner = [], module.token_loss

    def token_loss(log_p, log_q, spec):
        seen.append(len(log_p))
        return inner(log_p, log_q, spec)

    monkeypatch.setattr(module, "_BLOCK_ENTRIES", tokens * v + v // 2)
    monkeypatch.setattr(module, "token_loss", token_loss)
    return seen


@every_spec
@every_transform
def test_against_reference(name, transform):
    check(make(transform=transform, teacher_transform={"scale": 1.2, "softcap": 3.0}), SPECS[name])


def test_clips_of_these_tests_bind_some_tokens_and_not_others():
    for name in ("entry-clip", "non-negative"):
        clipped = make().run(SPECS[name])[1]["clipped"]
        assert ((clipped > 0) & (clipped < 1)).all()
    for name in ("hard", "scale"):
        assert set(make().run(SPECS[name])[1]["clipped"].flatten().tolist()) == {0.0, 1.0}
    ratio = (make().run(SPECS["is-clip"])[1]["student_logps"] - make().old_logps).exp()
    assert (ratio < 1.2).any() and (ratio > 1.2).any()


@every_spec
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_float32(name, k, bias):
    case = make(k=k, dtype=torch.float32, bias=bias, seed=1, transform={"softcap": 2.0, "scale": 0.7})
    loss, stats = case.run(SPECS[name])
    assert {loss.dtype} | {value.dtype for value in stats.values()} == {torch.float32}
    check(case, SPECS[name], **SINGLE)


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ("scale", "is-clip")])  # they hold a factor
@every_transform
def test_gradcheck(name, transform):
    case = make(n=3, k=2, seed=2, v=5, transform=transform)
    case.weights = torch.tensor([[0.7, 0.0, 1.3], [0.2, 0.0, 0.0]], dtype=torch.float64)

    def function(hidden, weight, bias):
        return replace(case, hidden=hidden, weight=weight, bias=bias).run(SPECS[name])[0] * 1.7

    assert torch.autograd.gradcheck(function, case.leaves())


@every_spec
@pytest.mark.parametrize("tokens", [1, 3, 4, 9, 10, 50])
def test_chunks(name, tokens, monkeypatch):
    seen = chunks_of(monkeypatch, tokens)
    check(make(seed=3, transform={"softcap": 2.0}), SPECS[name])
    sizes = [min(tokens, 10 - start) for start in range(0, 10, tokens)]
    assert seen == [size for size in sizes for _ in range(2)]


def test_a_block_smaller_than_the_vocabulary(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", 1)
    check(make(seed=3), SPECS["forward"])


@every_spec
@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("k", [1, 3])
def test_few_tokens(name, n, k):
    case = make(n=n, k=k, seed=4)
    loss, stats = case.run(SPECS[name])
    assert stats["loss"].shape == (k, n) and stats["student_logps"].shape == (n,)
    if n == 0:
        assert loss == 0
        for leaf, gradient in zip(case.leaves(), torch.autograd.grad(loss, case.leaves()), strict=True):
            assert gradient.shape == leaf.shape and (gradient == 0).all()
    else:
        check(case, SPECS[name])


@every_spec
def test_views_add_up(name):
    case = make(k=3, seed=5)
    loss, gradients = case.run(SPECS[name])[0], []
    total = torch.autograd.grad(loss, case.leaves())
    for view in range(3):
        one = replace(case, teacher_hidden=case.teacher_hidden[[view]], weights=case.weights[[view]])
        part = one.run(SPECS[name])[0]
        loss = loss - part
        gradients.append(torch.autograd.grad(part, case.leaves()))
    torch.testing.assert_close(loss, torch.zeros_like(loss), **DOUBLE)
    for gradient, parts in zip(total, zip(*gradients, strict=True), strict=True):
        torch.testing.assert_close(gradient, sum(parts), **DOUBLE)


@every_spec
def test_zero_weights(name):
    case = make(seed=6)
    case.weights.zero_()
    loss, stats = case.run(SPECS[name])
    assert loss == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, case.leaves()))
    assert (stats["divergence"] > 0).all()  # recorded all the same


def test_zero_weight_against_an_infinite_divergence():
    case = make(seed=6)
    # In the view that token 2 lacks, the teacher's logit of token 1 overflows to -inf
    case.teacher_weight = torch.cat([case.teacher_weight, torch.zeros(V, 1, dtype=torch.float64)], 1)
    case.teacher_weight[1, -1] = -1e308
    case.teacher_hidden = torch.cat([case.teacher_hidden, torch.zeros(2, 10, 1, dtype=torch.float64)], 2)
    want = case.run(SPECS["reverse"])[0]
    wants = torch.autograd.grad(want, case.leaves())
    case.teacher_hidden[1, 2, -1] = 100.0
    loss, stats = case.run(SPECS["reverse"])
    assert case.weights[1, 2] == 0 and stats["divergence"][1, 2] == torch.inf
    torch.testing.assert_close(loss, want)
    for gradient, value in zip(torch.autograd.grad(loss, case.leaves()), wants, strict=True):
        torch.testing.assert_close(gradient, value)


@every_spec
def test_agreement_gives_exact_zeros(name, monkeypatch):
    seen = chunks_of(monkeypatch, 4, 500)
    for dtype in (torch.float32, torch.bfloat16):
        case = make(dtype=dtype, seed=7, v=500, transform={"softcap": 5.0, "scale": 3.0})
        case.teacher_hidden, case.teacher_weight = case.hidden.detach().expand(2, -1, -1).clone(), case.weight.detach()
        case.teacher_bias, case.teacher_transform = case.bias.detach(), case.transform
        loss, stats = case.run(SPECS[name])
        assert loss == 0 and (stats["divergence"] == 0).all()
        assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, case.leaves()))
    assert seen == [4, 4, 4, 4, 2, 2] * 2


@every_spec
def test_infinite_bias(name):
    # Padding of the vocabulary that both heads rule out
    case = make(seed=8)
    with torch.no_grad():
        case.bias[-2:] = case.teacher_bias[-2:] = -torch.inf
    case.labels = case.labels % (V - 2)
    check(case, SPECS[name])


def test_importance_weight():
    spec = SPECS["is-clip"]
    case = make(seed=9, n=6, k=1)
    case.weights = torch.ones(1, 6, dtype=torch.float64)
    student = case.run(spec)[1]["student_logps"]
    # Far less likely now, less likely, as likely, a bit more likely, beyond the bound, far beyond it
    case.old_logps = student - torch.tensor([-1e3, -0.5, 0.0, 0.1, 0.3, 1e3], dtype=torch.float64)
    factor = torch.tensor([-20.0, -0.5, 0.0, 0.1, 0.0, 0.0], dtype=torch.float64).exp()
    factor[4:] = 1.2
    loss, stats = case.run(spec)
    torch.testing.assert_close(loss, (stats["loss"][0] * factor).sum(), **DOUBLE)
    plain = replace(case, weights=factor.unsqueeze(0), old_logps=None)
    for other in (spec, replace(spec, is_clip=None)):  # no gradient through the factor
        want = torch.autograd.grad(plain.run(other)[0], case.leaves())
        for gradient, value in zip(torch.autograd.grad(case.run(spec)[0], case.leaves()), want, strict=True):
            torch.testing.assert_close(gradient, value, **DOUBLE)
    unused = replace(case, old_logps=None).run(spec)[0]
    torch.testing.assert_close(case.run(replace(spec, is_clip=None))[0], unused, rtol=0, atol=0)
    check(case, spec)


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("weight",), ("bias",), ("hidden",), ("hidden", "weight")])
def test_frozen_parts(frozen):
    case = make(seed=10, transform={"softcap": 2.0})
    for part in frozen:
        getattr(case, part).requires_grad_(False)
    check(case, SPECS["jsd"])
    case.run(SPECS["jsd"])[0].backward()
    for part in ("hidden", "weight", "bias"):
        assert (getattr(case, part).grad is None) == (part in frozen)


def test_everything_frozen():
    case = make(seed=10)
    want = case.run(SPECS["jsd"])[0]
    for leaf in case.leaves():
        leaf.requires_grad_(False)
    loss = case.run(SPECS["jsd"])[0]
    assert not loss.requires_grad
    torch.testing.assert_close(loss, want, rtol=0, atol=0)


def test_teacher_gets_no_gradient():
    case = make(seed=10)
    for tensor in (case.teacher_hidden, case.teacher_weight, case.teacher_bias):
        tensor.requires_grad_()
    case.weights.requires_grad_()
    case.run(SPECS["forward"])[0].backward()
    assert case.hidden.grad is not None
    for tensor in (case.teacher_hidden, case.teacher_weight, case.teacher_bias, case.weights):
        assert tensor.grad is None


@every_spec
def test_used_twice_in_one_backward(name):
    case, other = make(seed=11), make(seed=12)
    other.weight, other.bias = case.weight, case.bias
    hidden, spec = case.hidden, SPECS[name]
    first, second = (replace(one, hidden=hidden * 1.0) for one in (case, other))  # one graph, one head, two calls
    leaves = [hidden, case.weight, case.bias]
    loss = first.run(spec)[0]
    got = torch.autograd.grad(loss + 2 * second.run(spec)[0] + 3 * loss, leaves, retain_graph=True)
    want = torch.autograd.grad(4 * first.expected(spec)[0] + 2 * second.expected(spec)[0], leaves)
    for gradient, value in zip(got, want, strict=True):
        torch.testing.assert_close(gradient, value, **DOUBLE)


def test_backward_again():
    case = make(seed=11)
    loss = case.run(SPECS["jsd"])[0]
    once = torch.autograd.grad(loss, case.leaves(), retain_graph=True)
    twice = torch.autograd.grad(2 * loss, case.leaves())
    for first, second in zip(once, twice, strict=True):
        torch.testing.assert_close(second, 2 * first, **DOUBLE)


@pytest.mark.parametrize("factor", [3.0, -0.25, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_incoming_gradient(factor, dtype):
    tolerance = DOUBLE if dtype == torch.float64 else SINGLE
    check(make(seed=13, dtype=dtype), SPECS["reverse"], factor=factor, **tolerance)


def test_gradient_flows_to_what_made_the_hidden_states():
    case = make(seed=14)
    leaf = torch.randn(10, 2 * H, dtype=torch.float64, requires_grad=True)
    case.hidden = (leaf * 2).tanh()[:, ::2]  # not contiguous
    (got,) = torch.autograd.grad(case.run(SPECS["forward"])[0], leaf, retain_graph=True)
    (want,) = torch.autograd.grad(case.expected(SPECS["forward"])[0], leaf)
    torch.testing.assert_close(got, want, **DOUBLE)


@every_spec
def test_no_grad(name):
    case = make(seed=15)
    want, want_stats = case.run(SPECS[name])
    with torch.no_grad():
        loss, stats = case.run(SPECS[name])
    assert loss.grad_fn is None and not loss.requires_grad
    torch.testing.assert_close(loss, want.detach(), rtol=0, atol=0)
    for key, value in want_stats.items():
        torch.testing.assert_close(stats[key], value, rtol=0, atol=0)


def test_no_grad_forms_no_gradient(monkeypatch):
    monkeypatch.setattr(module, "_accumulate", lambda *_: pytest.fail("a gradient that nobody asked for"))
    with torch.no_grad():
        make().run(SPECS["forward"])


@every_spec
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype, monkeypatch):
    chunks_of(monkeypatch, 4)
    spec = SPECS[name]
    case = make(dtype=dtype, seed=16, transform={"softcap": 4.0})
    loss, stats = case.run(spec)
    want, want_stats = case.expected(spec)
    assert loss.dtype == torch.float32
    coarse = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), want, rtol=coarse, atol=coarse)
    for key in ("divergence", "student_logps", "teacher_logps", "student_entropy", "teacher_entropy"):
        torch.testing.assert_close(stats[key].double(), want_stats[key], rtol=coarse, atol=coarse)
    leaves = case.leaves()
    wants = torch.autograd.grad(want, leaves)
    for leaf, gradient, value in zip(leaves, torch.autograd.grad(loss, leaves), wants, strict=True):
        assert gradient.dtype == dtype and gradient.shape == leaf.shape
        assert 0 < (gradient - value).norm() < 3 * coarse * value.norm()


def test_half_precision_sums_over_chunks_in_float32(monkeypatch):
    # A running sum in bfloat16 stops at 256 equal terms
    case = make(n=1, k=1, dtype=torch.bfloat16, seed=17)
    case.weights.fill_(1.0)
    one = torch.autograd.grad(case.run(SPECS["forward"])[0], case.leaves())
    many = replace(
        case,
        hidden=case.hidden.detach().expand(2000, -1).clone().requires_grad_(),
        teacher_hidden=case.teacher_hidden.expand(1, 2000, -1),
        labels=case.labels.expand(2000),
        weights=case.weights.expand(1, 2000),
        old_logps=None,
    )
    chunks_of(monkeypatch, 1)
    got = torch.autograd.grad(many.run(SPECS["forward"])[0], many.leaves())
    for gradient, single in zip(got[1:], one[1:], strict=True):
        assert (gradient.float() - 2000 * single.float()).norm() < 0.02 * (2000 * single.float()).norm()


@pytest.mark.parametrize("mixed", [False, True], ids=["float16", "autocast"])
@pytest.mark.parametrize("factor", [2**15, 2**16])  # the second, above the largest float16, is GradScaler's first
def test_float16_under_a_loss_scale(mixed, factor):
    # Weights of 1 / 20000, as a mean over a batch has. A gradient formed at that size falls below the least float16,
    # out of reach of the factor that is to lift it, which arrives in backward.
    case = make(n=16, k=1, dtype=torch.float32 if mixed else torch.float16, bias=False, seed=18, v=4000)
    case.weights = torch.full((1, 16), 1 / 20_000)
    with torch.autocast("cpu", torch.float16, enabled=mixed):
        loss = case.run(SPECS["forward"])[0]
    leaves = case.leaves()
    wants = torch.autograd.grad(case.expected(SPECS["forward"])[0] * factor, leaves)
    for gradient, want in zip(torch.autograd.grad(loss * factor, leaves), wants, strict=True):
        assert (gradient - want).norm() < 0.01 * want.norm()


@every_spec
def test_autocast(name):
    spec = SPECS[name]
    case = make(dtype=torch.float32, seed=19, transform={"scale": 0.5})
    with torch.autocast("cpu", torch.bfloat16):
        loss, stats = case.run(spec)
        outside = torch.autograd.grad(loss, case.leaves())
    # The same as inputs rounded by hand
    halved = {
        part: getattr(case, part).detach().bfloat16().requires_grad_(getattr(case, part).requires_grad)
        for part in ("hidden", "weight", "bias", "teacher_hidden", "teacher_weight", "teacher_bias")
    }
    by_hand = replace(case, **halved)
    want, want_stats = by_hand.run(spec)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, want, rtol=0, atol=0)
    for key, value in want_stats.items():
        torch.testing.assert_close(stats[key], value, rtol=0, atol=0)
    gradients = torch.autograd.grad(want, by_hand.leaves())
    for leaf, gradient, value in zip(case.leaves(), outside, gradients, strict=True):
        assert gradient.dtype == leaf.dtype
        assert (gradient - value.float()).norm() <= 0.02 * value.float().norm()
    # And it did round
    assert not torch.equal(loss, case.run(spec)[0])


@every_spec
def test_float32_head_under_autocast(name):
    case = make(dtype=torch.float32, seed=20, transform={"float32": True}, teacher_transform={"float32": True})
    want, _ = case.run(SPECS[name])
    wants = torch.autograd.grad(want, case.leaves())
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = case.run(SPECS[name])
        gradients = torch.autograd.grad(loss, case.leaves())
    torch.testing.assert_close(loss, want, rtol=0, atol=0)
    for gradient, value in zip(gradients, wants, strict=True):
        torch.testing.assert_close(gradient, value, rtol=0, atol=0)


def test_float32_head_of_a_bfloat16_model():
    case = make(dtype=torch.bfloat16, seed=21, transform={"float32": True}, teacher_transform={"float32": True})
    loss, stats = case.run(SPECS["reverse"])
    want, want_stats = case.expected(SPECS["reverse"])
    torch.testing.assert_close(loss.double(), want, **SINGLE)
    for key, value in want_stats.items():
        torch.testing.assert_close(stats[key].double(), value, **SINGLE)
    leaves = case.leaves()
    wants = torch.autograd.grad(want, leaves)
    for gradient, value in zip(torch.autograd.grad(loss, leaves), wants, strict=True):
        torch.testing.assert_close(gradient, value, rtol=0.01, atol=1e-5)  # rounded once, at the end


@every_transform
def test_head(transform):
    case = make(seed=22, transform=transform)
    logits = case.head().prepared(case.hidden).logits(case.hidden.detach())
    options = {"scale": 1.0, "softcap": None} | transform
    want = reference.head_logits(case.hidden, case.weight, case.bias, **options)
    torch.testing.assert_close(logits, want.detach(), **DOUBLE)
    upstream = torch.randn(10, V, dtype=torch.float64)
    raw = (case.hidden @ case.weight.T + case.bias).detach().requires_grad_()
    capped = raw * options["scale"]
    capped = capped if options["softcap"] is None else options["softcap"] * (capped / options["softcap"]).tanh()
    (want,) = torch.autograd.grad((capped * upstream).sum(), raw)
    torch.testing.assert_close(case.head().back_through_transform(upstream, logits), want, **DOUBLE)


@pytest.mark.parametrize("bias", [True, False])
def test_cut(bias):
    case = make(seed=23, bias=bias, transform={"scale": 0.5, "softcap": 2.0})
    head = case.head()
    assert head.cut(V) is head
    cut = head.cut(V - 3)
    assert (cut.scale, cut.softcap, cut.float32) == (0.5, 2.0, False)
    whole, part = (h.prepared(case.hidden).logits(case.hidden.detach()) for h in (head, cut))
    torch.testing.assert_close(part, whole[:, : V - 3], **DOUBLE)
    # Gradients reach the rows that are left, and only those
    teacher = Head(case.teacher_weight, case.teacher_bias).cut(V - 3)
    labels = case.labels % (V - 3)
    linear_divergence(case.hidden, cut, case.teacher_hidden, teacher, labels, case.weights, SPECS["forward"])[
        0
    ].backward()
    for leaf in case.leaves()[1:]:
        assert (leaf.grad[V - 3 :] == 0).all() and (leaf.grad[: V - 3] != 0).all()
