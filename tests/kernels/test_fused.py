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
from devices import device
from kernel_cases import DOUBLE, SINGLE, Case, V, close, drawn, make, tiles_of
from trl_opsd.kernels import DivergenceStats, fused_linear_divergence
from trl_opsd.losses import DivergenceSpec


STOP_GRADIENT = {"divergence": "reverse_kl", "topk": 3, "stop_gradient": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "forward": {"divergence": "forward_kl", "temperature": 0.7},
    "reverse": {"divergence": "reverse_kl", "temperature": 1.7},
    "jsd": {"divergence": "jsd", "alpha": 0.5},
    "jsd-alpha": {"alpha": 0.2},
    "skew": {"divergence": "skew_kl", "alpha": 0.1},
    "entry-clip": {"entry_clip": 0.05},
    "non-negative": {"entry_clip": 0.05, "entry_clip_mode": "non_negative"},
    "hard": {"token_clip": 1.0},
    "topk": {"topk": 4},
    "teacher": {"topk": 4, "topk_source": "teacher"},
    "union-tail": {"topk": 2, "topk_source": "union", "add_tail": True},
    "stop-gradient": STOP_GRADIENT,
    "arithmetic": {"target": "arithmetic"},
    "geometric": {"target": "geometric", "divergence": "reverse_kl"},
    "many": {"alpha": 0.5, "topk": 5, "add_tail": True, "token_clip": 0.5, "temperature": 1.3, "target": "geometric"},
}
OF_STUDENT = ("student_logps", "student_entropy")
OF_SPEC = {item.name for item in fields(DivergenceSpec)} - {"token_weight"}

every_option = pytest.mark.parametrize("name", OPTIONS)


def call(case: Case, **options: Any) -> tuple[torch.Tensor, DivergenceStats]:
    """With both heads, biases and labels, unless told otherwise. Fields of the spec go into one."""
    described = {name: options.pop(name) for name in list(options) if name in OF_SPEC}
    options = options | ({"spec": DivergenceSpec(**described)} if described else {})
    given = {"labels": case.labels, "student_bias": case.bias, "teacher_bias": case.teacher_bias} | options
    weight = given.pop("teacher_weight", case.teacher_weight)
    return fused_linear_divergence(case.hidden, case.weight, case.teacher_hidden, weight, **given)


def expected(case: Case, scale: float = 1.0, softcap: float | None = None, **options: Any):
    views = case.teacher_hidden if case.teacher_hidden.ndim == 3 else case.teacher_hidden.unsqueeze(0)
    teachers = [
        reference.head_logits(view, case.teacher_weight, case.teacher_bias, scale, softcap).detach() for view in views
    ]
    student = reference.head_logits(case.hidden, case.weight, case.bias, scale, softcap)
    return reference.dense_loss(student, teachers, case.labels, case.weights, DivergenceSpec(**options))


def check(case: Case, got: tuple[torch.Tensor, DivergenceStats], want: Any, **tolerance: float) -> None:
    """Loss, statistics and gradients."""
    tolerance = tolerance or DOUBLE
    (loss, stats), (value, values) = got, want
    torch.testing.assert_close(loss.double(), value, **tolerance)
    assert set(vars(stats)) == set(values)
    for name, one in values.items():
        one = one[0] if name not in OF_STUDENT and case.teacher_hidden.ndim == 2 else one
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
    assert all(value.shape == (1, 10) for one, value in vars(three[1]).items() if one not in OF_STUDENT)
    case.teacher_hidden = case.teacher_hidden[0]
    two = call(case, **OPTIONS[name])
    assert all(value.shape == (10,) for value in vars(two[1]).values())
    check(case, two, expected(case, **OPTIONS[name]))
    assert torch.equal(three[0], two[0])


def test_defaults():
    case = make(k=2, seed=42)
    case.weights, case.bias, case.teacher_bias = mean_over_tokens_and_views(2, 10), None, None
    got = fused_linear_divergence(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight)
    want = expected(case, divergence="forward_kl", temperature=1.0)
    assert got[1].student_logps is None and got[1].teacher_logps is None
    got[1].student_logps, got[1].teacher_logps = want[1]["student_logps"], want[1]["teacher_logps"]
    check(case, got, want)
    case.teacher_hidden = case.teacher_hidden[0]
    loss, stats = fused_linear_divergence(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight)
    assert stats.student_logps is None and stats.teacher_logps is None and stats.divergence.shape == (10,)
    torch.testing.assert_close(loss, stats.divergence.mean())


@pytest.mark.parametrize("target", [None, "arithmetic", "geometric"])
def test_weights(target):
    case = make(k=3, seed=43)
    tokens = torch.tensor([1.0, 0, 1, 2, 0.5, 1, 1, 0, 1, 1], dtype=torch.float64)
    views = torch.tensor([0.5, 0.0, 0.3], dtype=torch.float64)
    per_token = drawn(torch.rand, 3, 10, seed=44)
    for token_weight, view_weight in ((tokens, None), (None, views), (tokens, views), (tokens, per_token)):
        one = torch.full((10,), 0.1, dtype=torch.float64) if token_weight is None else token_weight
        share = torch.full((3,), 1 / 3, dtype=torch.float64) if view_weight is None else view_weight
        case.weights = one * (share if share.ndim == 2 else share.unsqueeze(1))
        got = call(case, token_weight=token_weight, view_weight=view_weight, target=target)
        check(case, got, expected(case, target=target))
    # A mask of any type will do
    masked = [call(case, token_weight=mask, target=target)[0] for mask in (tokens > 0, (tokens > 0).double())]
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
    got = call(case, divergence="reverse_kl")
    check(case, got, expected(case, divergence="reverse_kl"))
    assert got[1].student_logps[0] == got[1].teacher_logps[0, 0] == -torch.inf
    case.teacher_bias[0] = -torch.inf
    loss, stats = call(case, divergence="reverse_kl")
    assert loss == torch.inf and (stats.divergence == torch.inf).all()


@pytest.mark.parametrize("bias", [True, False])
def test_teacher_with_the_head_of_the_student(bias):
    case = make(k=2, seed=47, bias=bias)
    case.teacher_hidden = drawn(torch.randn, 2, 10, 6, seed=48)
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
    check(case, call(case, alpha=0.5), expected(case, alpha=0.5))
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
    with torch.autocast(device(), torch.bfloat16):
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
        return call(replace(case, hidden=hidden, weight=weight, bias=bias), divergence="skew_kl", alpha=0.2)[0]

    assert torch.autograd.gradcheck(function, case.leaves())


BAD: list[tuple[str, dict[str, Any]]] = [
    ("divergence", {"divergence": "js"}),
    ("alpha", {"divergence": "jsd", "alpha": 0.0}),
    ("alpha", {"divergence": "jsd", "alpha": 1.0}),
    ("alpha", {"divergence": "skew_kl", "alpha": -0.1}),
    ("alpha", {"divergence": "forward_kl", "alpha": 0.5}),
    ("alpha", {"divergence": "reverse_kl", "alpha": 1.0}),
    ("alpha", {"alpha": 1.1}),
    ("alpha", {"alpha": float("nan")}),
    ("temperature", {"temperature": 0.0}),
    ("temperature", {"temperature": float("nan")}),
    ("entry_clip_mode", {"entry_clip_mode": "absolute"}),
    ("entry_clip_mode", {"entry_clip_mode": "non_negative"}),
    ("entry_clip", {"entry_clip": 0.0}),
    ("token_clip", {"token_clip": float("inf")}),
    ("is_clip", {"is_clip": -1.0}),
    ("is_clip", {"is_clip": 2.0}),
    ("auxiliary_loss", {"auxiliary_loss": lambda tile: None}),
    ("token_weight", {"spec": DivergenceSpec(token_weight=lambda stats: None)}),
    ("topk", {"topk": 0}),
    ("topk", {"topk": V + 1}),
    ("topk", {"topk": 2.5}),
    ("topk", {"topk": 1}),
    ("topk_source", {"topk": 2, "topk_source": "both"}),
    ("target", {"target": "harmonic"}),
    ("chunk_size", {"chunk_size": 0}),
    ("stop_gradient", {**STOP_GRADIENT, "divergence": "forward_kl"}),
    ("stop_gradient", {**STOP_GRADIENT, "topk": None}),
    ("stop_gradient", {**STOP_GRADIENT, "add_tail": True}),
    ("stop_gradient", {**STOP_GRADIENT, "entry_clip": 0.1}),
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
    case = make(seed=55)
    with pytest.raises(ValueError, match=f"`{name}`"):
        call(case, **options)


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


# Keyword arguments of version 0.1, with the spec that they describe
DEPRECATED = [
    ({"kind": "reverse_kl", "beta": 7.0}, DivergenceSpec("reverse_kl")),
    ({"kind": "jsd"}, DivergenceSpec("jsd", 0.5)),
    ({"kind": "skew_kl", "beta": 0.2, "temperature": 1.3}, DivergenceSpec("skew_kl", 0.2, 1.3)),
    ({"topk": 3, "add_tail": True, "mixture": "geometric"}, DivergenceSpec(topk=3, add_tail=True, target="geometric")),
    ({"beta": 0.7}, DivergenceSpec()),
]


@pytest.mark.parametrize(("options", "spec"), DEPRECATED, ids=str)
def test_options_one_by_one_are_deprecated(options, spec):
    case = make(seed=57)
    tensors = case.hidden, case.weight, case.teacher_hidden, case.teacher_weight
    with pytest.warns(FutureWarning, match=r"spec=DivergenceSpec\(\.\.\.\)") as told:
        loss, stats = fused_linear_divergence(*tensors, labels=case.labels, **options)
    assert told[0].filename == __file__, "the warning points at the caller"
    want, wants = fused_linear_divergence(*tensors, labels=case.labels, spec=spec)
    assert torch.equal(loss, want) and all(torch.equal(value, vars(wants)[name]) for name, value in vars(stats).items())
    with pytest.raises(TypeError, match=r"Put .* into `spec`"):
        fused_linear_divergence(*tensors, spec=spec, **options)


def test_an_option_that_does_not_exist():
    case = make(seed=57)
    with pytest.raises(TypeError, match="no_such"):
        fused_linear_divergence(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight, no_such=1)
