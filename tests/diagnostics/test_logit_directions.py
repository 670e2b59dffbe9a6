# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Directions on a token's logits, against autograd in float64 and against the kernel that trains."""

import pytest
import torch

from method_cases import CLOSE, V, random
from trl_opsd import OPSDConfig
from trl_opsd.diagnostics.logit_directions import TokenPlace, among, cosine, ideal_direction, loss_gradient
from trl_opsd.kernels import Head, LinearDivergenceInputs, linear_divergence
from trl_opsd.losses import DivergenceSpec
from trl_opsd.methods.registry import method_names, method_of
from trl_opsd.methods.runtime import MethodRun


PLACE = TokenPlace(3, 0.5, [1.0])


def distribution(draw, size=V):
    return torch.randn(size, generator=draw, dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [2, 5])
def test_the_ideal_is_the_gradient_of_the_expected_score(seed, size):
    draw = random(seed)
    logits = torch.randn(size, generator=draw, dtype=torch.float64, requires_grad=True)
    scores = torch.rand(size, generator=draw, dtype=torch.float64)
    (expected,) = torch.autograd.grad((logits.softmax(-1) * scores).sum(), logits)
    torch.testing.assert_close(ideal_direction(logits.detach().softmax(-1), scores), expected, **CLOSE)


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [4, 1, 7]])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_among_candidates(name, kept):
    """P_j (f_j - sum P f) with f as the module says, P the student's on the candidates alone."""
    draw = random(1)
    log_p, log_q = distribution(draw), distribution(draw)
    f = (log_q - log_p).exp() if name == "forward_kl" else log_q - log_p
    p = log_p.exp()[kept] / log_p.exp()[kept].sum()
    expected = p * (f[kept] - (p * f[kept]).sum())
    got = among(loss_gradient(log_p, [log_q], DivergenceSpec(name), PLACE), log_p.exp(), torch.tensor(kept))
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("eta", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("kept", [[0, 1], [2, 5, 9], list(range(V))])
def test_a_teacher_of_the_ideal_kind_is_aligned_exactly(eta, kept):
    """q = p exp(eta S) / Z is the optimum under a reverse KL to p: its own reverse KL points where the score does."""
    draw = random(2)
    log_p, scores = distribution(draw), torch.rand(V, generator=draw, dtype=torch.float64)
    log_q = (log_p + eta * scores).log_softmax(-1)
    p, kept = log_p.exp(), torch.tensor(kept)
    ideal = ideal_direction(p[kept] / p[kept].sum(), scores[kept])
    for name, exact in (("reverse_kl", True), ("forward_kl", eta == 0.01)):
        direction = among(loss_gradient(log_p, [log_q], DivergenceSpec(name), PLACE), p, kept)
        # The forward KL has f = exp(eta S) / Z, which is linear in S for a small eta alone
        close = {"rel": 1e-9} if name == "reverse_kl" else {"rel": 1e-4}
        if exact:
            assert cosine(ideal, direction) == pytest.approx(1.0, **close)
    against = (log_p - eta * scores).log_softmax(-1)
    direction = among(loss_gradient(log_p, [against], DivergenceSpec("reverse_kl"), PLACE), p, kept)
    assert cosine(ideal, direction) == pytest.approx(-1.0, rel=1e-9)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_a_teacher_like_the_student_has_no_direction(name):
    log_p = distribution(random(3))
    gradient = loss_gradient(log_p, [log_p], DivergenceSpec(name), PLACE)
    assert not gradient.any()
    assert cosine(torch.ones(V).double(), among(gradient, log_p.exp(), torch.arange(V))) is None


PLAIN = {
    "forward KL": {},
    "reverse KL, temperature": {"distillation_alpha": 1.0, "distillation_temperature": 2.0},
    "jsd": {"distillation_alpha": 0.3},
    "top-k with a tail": {"distillation_mode": "topk_logits", "distillation_topk": 3, "distillation_add_tail": True},
    "entry clip": {"distillation_entry_clip": 0.05},
    "token clip": {"distillation_token_clip": 0.5},
    "geometric target": {"distillation_target": "geometric"},
}
# Methods that change the loss of a token by itself
OF_TOKENS = [
    name
    for name, method in ((name, method_of(name)) for name in method_names())
    if (method.target or method.token_weight or method.auxiliary_loss) and not method.needs_all_tokens
]


@pytest.mark.parametrize("case", [*PLAIN, *OF_TOKENS])
def test_the_gradient_is_that_of_the_kernel(case):
    """Through a head that is the identity, the gradient on hidden states is the one on the logits."""
    draw, count = random(4), 5
    options = PLAIN.get(case, {"method": case})
    config = OPSDConfig("unused", bf16=False, num_generations=2, **options)
    run = MethodRun(config.method, config.method_options)
    views = list(run.required) or ["privileged", "second"]
    views = [f"{name}-1" if name.endswith("es") else name for name in views]
    spec = run.spec(config.divergence_spec, views)
    hidden = torch.randn(count, V, generator=draw, dtype=torch.float64).requires_grad_()
    teachers = torch.randn(len(views), count, V, generator=draw, dtype=torch.float64)
    labels = torch.randint(V, (count,), generator=draw)
    weights = torch.rand(len(views), count, generator=draw, dtype=torch.float64) + 0.1
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    head = Head(torch.eye(V, dtype=torch.float64))
    task = LinearDivergenceInputs(
        head=head, teacher_hidden=teachers, teacher_heads=[head] * len(views), labels=labels, weights=weights,
        spec=spec, relative_positions=places, rows=torch.arange(count),
    )  # fmt: skip
    (expected,) = torch.autograd.grad(linear_divergence(hidden, task)[0], hidden)
    temperature = spec.temperature
    log_p = (hidden.detach() / temperature).log_softmax(-1)
    for i in range(count):
        log_qs = [(view[i] / temperature).log_softmax(-1) for view in teachers]
        place = TokenPlace(int(labels[i]), float(places[i]), weights[:, i].tolist())
        got = loss_gradient(log_p[i], log_qs, spec, place) / temperature
        torch.testing.assert_close(got, expected[i], **CLOSE)


def test_several_methods_are_among_them():
    assert len(OF_TOKENS) >= 5, OF_TOKENS
