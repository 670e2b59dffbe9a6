# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The public `fused_linear_divergence` against the reference: options, defaults, shapes and what it refuses.

Legend: N tokens, H hidden size of the student, V vocabulary, K views.
"""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

import reference
from kernel_cases import DOUBLE, SINGLE, Case, V, close, make, tiles_of
from trl_opsd.kernels import DivergenceStats, fused_linear_divergence
from trl_opsd.losses import DivergenceSpec


STOP_GRADIENT = {"kind": "reverse_kl", "topk": 3, "stop_gradient": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "forward": {"kind": "forward_kl", "temperature": 0.7},
    "reverse": {"kind": "reverse_kl", "temperature": 1.7},
    "jsd": {"kind": "jsd"},
    "jsd-beta": {"kind": "jsd", "beta": 0.2},
    "skew": {"kind": "skew_kl", "beta": 0.1},
    "entry-clip": {"entry_clip": 0.05},
    "non-negative": {"entry_clip": 0.05, "entry_clip_mode": "non_negative"},
    "hard": {"token_clip": 1.0},
    "scale": {"token_clip": 1.0, "token_clip_mode": "scale"},
    "topk": {"topk": 4},
    "teacher": {"topk": 4, "topk_source": "teacher"},
    "union-tail": {"topk": 2, "topk_source": "union", "add_tail": True},
    "stop-gradient": STOP_GRADIENT,
    "arithmetic": {"mixture": "arithmetic"},
    "geometric": {"mixture": "geometric", "kind": "reverse_kl"},
    "many": {"kind": "jsd", "topk": 5, "add_tail": True, "token_clip": 0.5, "temperature": 1.3, "mixture": "geometric"},
}
OF_TEACHER = ("divergence", "loss", "teacher_logps", "teacher_entropy", "clipped", "mass_p", "mass_q")

every_option = pytest.mark.parametrize("name", OPTIONS)


def call(case: Case, **options: Any) -> tuple[torch.Tensor, DivergenceStats]:
    """With both heads, biases and labels, unless told otherwise."""
    given = {"labels": case.labels, "student_bias": case.bias, "teacher_bias": case.teacher_bias} | options
    weight = given.pop("teacher_weight", case.teacher_weight)
    return fused_linear_divergence(case.hidden, case.weight, case.teacher_hidden, weight, **given)


def expected(case: Case, scale: float = 1.0, softcap: float | None = None, **options: Any):
    views = case.teacher_hidden if case.teacher_hidden.ndim == 3 else case.teacher_hidden.unsqueeze(0)
    teachers = [
        reference.head_logits(view, case.teacher_weight, case.teacher_bias, scale, softcap).detach() for view in views
    ]
    student = reference.head_logits(case.hidden, case.weight, case.bias, scale, softcap)
    spec = DivergenceSpec(**{"target" if name == "mixture" else name: value for name, value in options.items()})
    return reference.dense_loss(student, teachers, case.labels, case.weights, spec)


def check(case: Case, got: tuple[torch.Tensor, DivergenceStats], want: Any, **tolerance: float) -> None:
    """Loss, statistics and gradients."""
    tolerance = tolerance or DOUBLE
    (loss, stats), (value, values) = got, want
    torch.testing.assert_close(loss.double(), value, **tolerance)
    assert {field.name for field in fields(stats)} == set(values)
    for name, one in values.items():
        one = one[0] if name in OF_TEACHER and case.teacher_hidden.ndim == 2 else one
        assert not getattr(stats, name).requires_grad
        torch.testing.assert_close(getattr(stats, name).double(), one, **tolerance, msg=lambda m, n=name: f"{n}: {m}")
    gradients = torch.autograd.grad(1.7 * loss, case.leaves())
    close((g.double() for g in gradients), (g.double() for g in torch.autograd.grad(1.7 * value, case.leaves())))


def mean_over_tokens_and_views(k: int, n: int) -> torch.Tensor:
    return torch.full((k, n), 1 / (n * k), dtype=torch.float64)


@every_option
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_options(name, chunk_size):
    case = make(k=2, seed=40)
    case.weights = mean_over_tokens_and_views(2, 10)
    options = OPTIONS[name]
    check(case, call(case, chunk_size=chunk_size, **options), expected(case, **options))


def test_chunk_size(monkeypatch):
    seen = tiles_of(monkeypatch, 99)
    for size, sizes in ((None, [10]), (4, [4, 4, 2]), (7, [5, 5])):
        call(make(k=1, seed=40), chunk_size=size)
        assert seen == sizes
        seen.clear()


@every_option
def test_one_view(name):
    case = make(k=1, seed=41)
    case.weights = mean_over_tokens_and_views(1, 10)
    three = call(case, **OPTIONS[name])
    assert all(getattr(three[1], one).shape == (1, 10) for one in OF_TEACHER)
    case.teacher_hidden = case.teacher_hidden[0]
    two = call(case, **OPTIONS[name])
    assert all(value.shape == (10,) for value in vars(two[1]).values())
    check(case, two, expected(case, **OPTIONS[name]))
    assert torch.equal(three[0], two[0])


def test_defaults():
    case = make(k=2, seed=42)
    case.weights, case.bias, case.teacher_bias = mean_over_tokens_and_views(2, 10), None, None
    got = fused_linear_divergence(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight)
    want = expected(case, kind="forward_kl", temperature=1.0)
    assert got[1].student_logps is None and got[1].teacher_logps is None
    got = got[0], replace(got[1], student_logps=want[1]["student_logps"], teacher_logps=want[1]["teacher_logps"])
    check(case, got, want)
    case.teacher_hidden = case.teacher_hidden[0]
    loss, stats = fused_linear_divergence(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight)
    assert stats.student_logps is None and stats.teacher_logps is None and stats.divergence.shape == (10,)
    torch.testing.assert_close(loss, stats.divergence.mean())


@pytest.mark.parametrize("mixture", [None, "arithmetic", "geometric"])
def test_weights(mixture):
    case = make(k=3, seed=43)
    tokens = torch.tensor([1.0, 0, 1, 2, 0.5, 1, 1, 0, 1, 1], dtype=torch.float64)
    views = torch.tensor([0.5, 0.0, 0.3], dtype=torch.float64)
    per_token = torch.rand(3, 10, generator=torch.Generator().manual_seed(44), dtype=torch.float64)
    for token_weight, view_weight in ((tokens, None), (None, views), (tokens, views), (tokens, per_token)):
        one = torch.full((10,), 0.1, dtype=torch.float64) if token_weight is None else token_weight
        share = torch.full((3,), 1 / 3, dtype=torch.float64) if view_weight is None else view_weight
        case.weights = one * (share if share.ndim == 2 else share.unsqueeze(1))
        got = call(case, token_weight=token_weight, view_weight=view_weight, mixture=mixture)
        check(case, got, expected(case, mixture=mixture))
    # A mask of any type will do
    masked = [call(case, token_weight=mask, mixture=mixture)[0] for mask in (tokens > 0, (tokens > 0).double())]
    assert torch.equal(*masked)


def test_weights_get_no_gradient():
    case = make(k=2, seed=43)
    weights = torch.ones(10, dtype=torch.float64, requires_grad=True), torch.ones(2, 10, requires_grad=True)
    call(case, token_weight=weights[0], view_weight=weights[1])[0].backward()
    assert case.hidden.grad is not None and weights[0].grad is None and weights[1].grad is None


@pytest.mark.parametrize("transform", [{"scale": 0.4}, {"softcap": 1.5}, {"scale": 2.5, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_head(transform, bias):
    case = make(k=2, seed=45, bias=bias)
    case.weights = mean_over_tokens_and_views(2, 10)
    given = {f"logit_{name}": value for name, value in transform.items()}
    check(case, call(case, **given), expected(case, **transform))
    if bias:
        alone = replace(case, bias=None)
        check(alone, call(alone, **given), expected(alone, **transform))


def test_a_bias_rules_tokens_out():
    case = make(k=2, seed=46)
    case.weights = mean_over_tokens_and_views(2, 10)
    with torch.no_grad():
        case.bias[-2:] = case.teacher_bias[-2:] = -torch.inf
    case.labels[0] = V - 1
    got = call(case, kind="reverse_kl")
    check(case, got, expected(case, kind="reverse_kl"))
    assert got[1].student_logps[0] == got[1].teacher_logps[0, 0] == -torch.inf
    case.teacher_bias[0] = -torch.inf
    loss, stats = call(case, kind="reverse_kl")
    assert loss == torch.inf and (stats.divergence == torch.inf).all()


@pytest.mark.parametrize("bias", [True, False])
def test_teacher_with_the_head_of_the_student(bias):
    case = make(k=2, seed=47, bias=bias)
    case.teacher_hidden = torch.randn(2, 10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(48))
    case.teacher_hidden.requires_grad_()
    case.weights = mean_over_tokens_and_views(2, 10)
    got = call(case, teacher_weight=None, teacher_bias=None, logit_softcap=3.0, logit_scale=0.7)
    case.teacher_weight, case.teacher_bias = case.weight.detach(), case.bias.detach() if bias else None
    # In the reference, the teacher's head is a constant
    check(case, got, expected(case, scale=0.7, softcap=3.0))
    call(case, teacher_weight=None, teacher_bias=None)[0].backward()
    assert case.weight.grad is not None and case.teacher_hidden.grad is None


def test_a_teacher_with_a_head_but_no_bias():
    # The student's bias is not the teacher's
    case = make(k=1, seed=49)
    case.weights, case.teacher_bias = mean_over_tokens_and_views(1, 10), None
    check(case, call(case), expected(case))


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("ndim", [2, 3])
def test_few_tokens(n, ndim):
    case = make(n=n, k=1, seed=50)
    case.weights = mean_over_tokens_and_views(1, n) if n else case.weights
    case.teacher_hidden = case.teacher_hidden[0] if ndim == 2 else case.teacher_hidden
    check(case, call(case, kind="jsd"), expected(case, kind="jsd"))
    assert call(case)[1].divergence.shape == ((n,) if ndim == 2 else (1, n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(dtype):
    case = make(k=2, seed=51, dtype=dtype)
    case.weights = mean_over_tokens_and_views(2, 10).float()
    loss, stats = call(case)
    assert {loss.dtype, *(value.dtype for value in vars(stats).values())} == {torch.float32}
    coarse = SINGLE if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(loss.double(), expected(case)[0], **coarse)
    loss.backward()
    assert {leaf.grad.dtype for leaf in case.leaves()} == {dtype}
    for weights in (dtype, torch.float64):  # whose type does not matter
        again, stats = call(
            case, token_weight=torch.full((10,), 0.1).to(weights), view_weight=torch.ones(2).to(weights)
        )
        assert again.dtype == stats.loss.dtype == torch.float32
        torch.testing.assert_close(again, 2 * loss, rtol=2e-3, atol=0)


def test_autocast():
    case = make(k=2, seed=52, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, stats = call(case)
    exact = call(case)[0]
    assert {loss.dtype, *(value.dtype for value in vars(stats).values())} == {torch.float32}
    assert not torch.equal(loss, exact)
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)


def test_no_grad():
    case = make(k=2, seed=53)
    with torch.no_grad():
        loss, _ = call(case)
    assert not loss.requires_grad and torch.equal(loss, call(case)[0])


def test_gradcheck():
    case = make(n=3, k=2, seed=54, v=5)

    def function(hidden, weight, bias):
        return call(replace(case, hidden=hidden, weight=weight, bias=bias), kind="skew_kl", beta=0.2)[0]

    assert torch.autograd.gradcheck(function, case.leaves())


BAD: list[tuple[str, dict[str, Any]]] = [
    ("kind", {"kind": "js"}),
    ("beta", {"kind": "jsd", "beta": 0.0}),
    ("beta", {"kind": "jsd", "beta": 1.0}),
    ("beta", {"kind": "skew_kl", "beta": -0.1}),
    ("temperature", {"temperature": 0.0}),
    ("temperature", {"temperature": float("nan")}),
    ("entry_clip_mode", {"entry_clip_mode": "absolute"}),
    ("token_clip_mode", {"token_clip_mode": "soft"}),
    ("topk", {"topk": 0}),
    ("topk", {"topk": V + 1}),
    ("topk_source", {"topk": 2, "topk_source": "both"}),
    ("mixture", {"mixture": "harmonic"}),
    ("chunk_size", {"chunk_size": 0}),
    ("stop_gradient", {**STOP_GRADIENT, "kind": "forward_kl"}),
    ("stop_gradient", {**STOP_GRADIENT, "topk": None}),
    ("stop_gradient", {**STOP_GRADIENT, "add_tail": True}),
    ("stop_gradient", {**STOP_GRADIENT, "entry_clip": 0.1}),
    ("stop_gradient", {**STOP_GRADIENT, "entry_clip": 0.0}),
    ("labels", {"labels": torch.zeros(9, dtype=torch.long)}),
    ("labels", {"labels": torch.zeros(10, 1, dtype=torch.long)}),
    ("token_weight", {"token_weight": torch.ones(9)}),
    ("token_weight", {"token_weight": torch.ones(2, 10)}),
    ("view_weight", {"view_weight": torch.ones(3)}),
    ("view_weight", {"view_weight": torch.ones(10, 2)}),
    ("teacher_bias", {"teacher_weight": None}),
    ("teacher_weight", {"teacher_weight": torch.ones(V + 1, 4)}),
    ("teacher_weight", {"teacher_weight": torch.ones(V, 5)}),
    ("teacher_weight", {"teacher_weight": None, "teacher_bias": None}),  # of another hidden size than the student's
]


@pytest.mark.parametrize(("name", "options"), BAD)
def test_refuses(name, options):
    with pytest.raises(ValueError, match=f"`{name}`"):
        call(make(seed=55), **options)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("student_hidden", (10,)),
        ("student_hidden", (2, 10, 6)),
        ("student_hidden", (9, 6)),
        ("student_weight", (10, 5)),
        ("teacher_hidden", (10,)),
        ("teacher_hidden", (2, 9, 4)),
        ("teacher_hidden", (0, 10, 4)),
        ("teacher_hidden", (1, 2, 10, 4)),
        ("teacher_weight", (2, 10, 5)),
    ],
)
def test_refuses_shapes(name, shape):
    case = make(seed=56)
    tensor = torch.zeros(shape, dtype=torch.float64)
    if name in ("student_hidden", "student_weight"):
        case.hidden = tensor
    else:
        case.teacher_hidden = tensor
    with pytest.raises(ValueError, match=f"`{name}`"):
        call(case)


def test_beta_matters_only_where_it_is_used():
    case = make(seed=57)
    for kind in ("forward_kl", "reverse_kl"):
        assert torch.equal(call(case, kind=kind, beta=7.0)[0], call(case, kind=kind)[0])
