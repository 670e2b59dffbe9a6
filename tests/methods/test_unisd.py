# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""UniSD: agreement of other teachers, contrast, feature matching, the token clip; each part alone."""

import math

import pytest
import torch
from datasets import Dataset

from conftest import length_reward
from method_batches import MIXED, WRONG, scripted_trainer
from method_cases import CLOSE, H, N, check_loss, random
from trl_opsd.losses import Tile
from trl_opsd.methods.papers.unisd import agreement, feature_matching, sequence_agreement, token_agreement
from trl_opsd.methods.papers.unisd import contrast as contrast_of_views
from trl_opsd.methods.runtime import MethodRun


VIEWS = ["privileged", "context-1", "context-2", "wrong"]
QUICK = {"learning_rate": 1e-3, "shuffle_dataset": False}
OFF = {"agreement": "none", "contrast": 0.0, "matching": 0.0}


def on_label(log_probs, labels):
    return log_probs.gather(-1, labels[:, None]).squeeze(-1)


def kl(log_p, log_q, clip=10.0):
    return (log_q.exp() * (log_q - log_p)).sum(-1).clamp(max=clip)


def variance(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def token_weights(log_qs, labels, gamma=1.0):
    scores = [on_label(log_q, labels).tolist() for log_q in log_qs]
    distances = [variance([score[i] for score in scores]) for i in range(N)]
    ordered, place = sorted(distances), 0.95 * (N - 1)
    low = math.floor(place)
    high = ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])
    weights = [max(1 / (1 + gamma * min(d / high, 10.0)), 0.01) for d in distances]
    return torch.tensor(weights, dtype=torch.float64)


def sequence_weights(log_qs, labels, gamma=1.0):
    """Rows are of three tokens."""
    scores = [on_label(log_q, labels).view(-1, 3).mean(1).tolist() for log_q in log_qs]
    weights = [max(math.exp(-gamma * variance([score[row] for score in scores])), 1e-6) for row in range(N // 3)]
    return torch.tensor(weights, dtype=torch.float64).repeat_interleave(3)


def contrast(log_p, right, wrong, labels, margin=0.5):
    near, far = ((on_label(log_p, labels) - on_label(log_q, labels)).abs() for log_q in (right, wrong))
    return (margin + near - far).clamp(min=0.0)


@pytest.mark.parametrize(("how", "made"), [("token", token_weights), ("sequence", sequence_weights)])
@pytest.mark.parametrize("gamma", [1.0, 3.0])
def test_loss(how, made, gamma):
    """All parts; feature matching is compared by itself below."""

    def formula(log_p, log_qs, labels):
        main, *others, wrong = log_qs
        weights = made(others, labels, gamma)
        assert weights.max() > weights.min()
        distilled = (weights * kl(log_p, main)).sum() / weights.sum()
        return distilled + 0.1 * contrast(log_p, main, wrong, labels).mean()

    check_loss("unisd", VIEWS, formula, method_options={"agreement": how, "gamma": gamma})


def test_agreement_alone():
    def formula(log_p, log_qs, labels):
        weights = token_weights(log_qs[1:], labels)
        return (weights * kl(log_p, log_qs[0])).sum() / weights.sum()

    options = {"contrast": 0.0, "matching": 0.0}
    check_loss("unisd", ["privileged", "context-1", "context-2"], formula, method_options=options)


def test_contrast_alone():
    values = []

    def formula(log_p, log_qs, labels):
        values.extend(contrast(log_p, log_qs[0], log_qs[1], labels, 0.2).tolist())
        return 0.3 * contrast(log_p, log_qs[0], log_qs[1], labels, 0.2)

    options = {**OFF, "contrast": 0.3, "margin": 0.2, "divergence": 0.0}
    check_loss("unisd", ["privileged", "wrong"], formula, method_options=options)
    assert min(values) == 0.0 < max(values), "tokens on both sides of the margin"


def test_contrast_is_the_mean_over_the_wrong_views_that_teach():
    """The first token has both, the second one of them, the third none, the fourth no right one."""
    draw = random(2)
    log_p, *log_qs = (torch.randn(4, 5, generator=draw, dtype=torch.float64).log_softmax(-1) for _ in range(4))
    labels, taught = torch.arange(4), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 1], [1, 1, 0, 1]], dtype=torch.bool)
    tile = Tile(log_p, log_p.exp(), log_qs, labels, None, taught, slice(0, 4))
    loss, gradient = contrast_of_views(tile, 0, [1, 2], 50.0)
    one, two = (contrast(log_p, log_qs[0], wrong, labels, 50.0) for wrong in log_qs[1:])
    zero = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(loss, torch.stack([(one[0] + two[0]) / 2, two[1], zero, zero]), **CLOSE)
    assert (gradient[2:] == 0).all()
    assert contrast_of_views(tile, 0, [], 50.0)[0].tolist() == [0.0] * 4


def test_token_clip_alone():
    whole = []

    def formula(log_p, log_qs, labels):
        whole.extend(kl(log_p, log_qs[0]).tolist())
        return kl(log_p, log_qs[0], clip=3.0)

    check_loss("unisd", ["privileged"], formula, method_options=OFF, distillation_token_clip=3.0)
    assert min(whole) < 3.0 < max(whole)


@pytest.mark.parametrize("names", [["privileged"], ["privileged", "context"]])
def test_without_others_it_is_the_divergence(names):
    """One teacher agrees with itself, and without a failed rollout there is no contrast."""
    check_loss("unisd", names, lambda log_p, log_qs, _: kl(log_p, log_qs[0]))


def test_feature_matching():
    draw = random(0)
    student = torch.randn(N, H, generator=draw, dtype=torch.float64).requires_grad_()
    teachers = torch.randn(2, N, H, generator=draw, dtype=torch.float64)
    weights = torch.full((2, N), 0.5 / N, dtype=torch.float64)
    weights[:, 0] = torch.tensor([0.0, 1 / N])  # not taught by the demonstration
    term = MethodRun("unisd", None).hidden_state_loss(["privileged", "context"])
    loss = term(student, teachers, weights)
    wanted = 0.1 * (student - teachers[0]).square().mean(-1)[1:].sum() / N
    torch.testing.assert_close(loss, wanted, **CLOSE)
    got, expected = (torch.autograd.grad(one, student)[0] for one in (loss, wanted))
    torch.testing.assert_close(got, expected, **CLOSE)


def test_matching_alone(make_trainer):
    """The demonstration's view is all that it needs; the last hidden states are pulled together."""
    options = {**OFF, "matching": 0.5, "divergence": 0.0}
    quick = {"privileged_source": "column", "method_options": options, "max_steps": 8, **QUICK}
    trainer = scripted_trainer(make_trainer, "unisd", MIXED, WRONG, **quick)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[0] > 0 and losses[-1] < 0.7 * losses[0]


def test_the_moving_average_alone(make_trainer):
    """Plain distillation, whose teacher takes a tenth of the student every ten steps."""
    options = {**OFF, "matching": 0.0}
    trainer = make_trainer(method="unisd", privileged_source="column", method_options=options, max_steps=10, **QUICK)
    start = {name: one.detach().clone() for name, one in trainer.model.named_parameters()}
    trainer.train()
    teacher, student = trainer.teacher.weights.copies, dict(trainer.model.named_parameters())
    for name, one in teacher.items():
        torch.testing.assert_close(one, start[name].lerp(student[name].detach(), 0.1))


def test_a_batch_without_a_demonstration_but_with_other_contexts(make_trainer, rows):
    """What only other teachers read is not taught, and takes no forward."""
    dataset = Dataset.from_list([{**row, "privileged_context": None} for row in rows[:2]] + rows[2:])
    options = {"reward_funcs": length_reward, "shuffle_dataset": False, "max_steps": 2}
    trainer = make_trainer(method="unisd", dataset=dataset, **options)
    trainer.train()
    logs = trainer.state.log_history[:2]
    assert logs[0]["self_distillation/view_share"] == 0.0 == logs[0]["loss"]
    assert logs[0]["self_distillation/incomplete_rollouts"] == 4
    assert logs[1]["self_distillation/view_share"] > 0 and math.isfinite(logs[1]["loss"])


def test_alike_features_give_zero():
    states = torch.randn(N, H, generator=random(1), dtype=torch.float64)
    assert feature_matching(states, states[None], torch.ones(1, N), 0) == 0.0


def test_agreement_where_views_are_missing():
    """A token that fewer than two others teach counts in full, and nothing is made of nothing."""
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -5.0, -9.0]], dtype=torch.float64)
    taught = torch.tensor([[True, True, True], [True, True, False]])
    weights, rows = token_agreement(logps, taught, 1.0), torch.tensor([1, 1, 5])  # others are not distilled
    assert weights[0] == weights[2] == 1.0 > weights[1]
    first, second, last = sequence_agreement(logps, taught, rows, 1.0)
    assert first == second < 1.0 == last
    nothing = torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)
    for how in ("none", "token", "sequence"):
        assert agreement(how, *nothing, torch.zeros(0, dtype=torch.long), 1.0).shape == (0,)


def test_a_token_of_great_disagreement_is_bounded():
    """One of forty, beyond ten times the quantile: 1 / (1 + gamma 10), or 0.01 if that is less."""
    logps = torch.stack([torch.full((40,), -1.0), torch.full((40,), -1.2)])
    logps[1, 7] = -30.0
    taught = torch.ones(2, 40, dtype=torch.bool)
    for gamma, least in ((1.0, 1 / 11), (50.0, 0.01)):
        weights = token_agreement(logps, taught, gamma)
        assert weights[7].item() == pytest.approx(least)
        assert weights[0].item() == pytest.approx(max(1 / (1 + gamma), 0.01), rel=1e-3)


def test_an_unknown_agreement():
    with pytest.raises(ValueError, match=r"`method_options\.agreement` must be one of"):
        check_loss("unisd", ["privileged"], None, method_options={"agreement": "often"})
