# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""pi-Distill: teacher and student of the same weights on texts that were sampled with the context in view."""

import itertools

import pytest
import torch

from batches import batch_of
from dense import dense_logps
from method_cases import signals
from trl_opsd.batches.roles import Roles
from turn_cases import by_role, check_gradients, numbered, row_loss


FIXED = {"fixed": {"context": "Mind the sign.", "place": "after_user"}}
TURNS = {"slots": ["second", "distil"], "source": FIXED, "attempt": False, "otherwise": "idle"}


def by_length(completion_ids, **_):
    return [float(len(ids) % 3) for ids in completion_ids]


def trainer_of(make_trainer, turns=TURNS, reward=by_length, **options):
    trainer = make_trainer(
        method="pi_distill", method_options=options, turns=turns, reward_funcs=reward, num_generations=8,
        per_device_train_batch_size=16, shuffle_dataset=False,
    )  # fmt: skip
    numbered(trainer)
    return trainer


def normalised(rewards):
    mean = sum(rewards) / len(rewards)
    return [
        (one - mean) / ((sum((x - mean) ** 2 for x in rewards) / (len(rewards) - 1)) ** 0.5 + 1e-4) for one in rewards
    ]


@pytest.mark.parametrize("horizon", ["rest", "token"])
@pytest.mark.parametrize(
    ("alpha", "beta", "clip"), [(0.5, 0.25, 1.0), (0.3, 0.0, 0.2), (0.0, 0.7, 0.9), (1.0, 0.1, 0.2)]
)
def test_the_gradient_is_that_of_the_formulas(make_trainer, horizon, alpha, beta, clip):
    """In float64, row by row. Of the student's ratio the loss is TRL's clipped one, with the teacher's probabilities as
    the old ones."""
    trainer = trainer_of(make_trainer, alpha=alpha, beta=beta, clip=clip, horizon=horizon)
    batch = batch_of(trainer)
    assert by_role(trainer) == ["second", "distil"] * 8
    rollouts, index = trainer.collected.rollouts, batch["distillation"].index.tolist()
    rewards = {}
    for prompt in range(2):
        group = [one for one in rollouts if one.group == prompt and one.role == "second"]
        values = normalised([one.total for one in group])
        rewards |= {one.attempt.index: value for one, value in zip(group, values, strict=True)}
    prompts = {}
    for one in rollouts:
        prompts.setdefault(one.attempt.index, {})[one.role] = one.prompt_ids
    rows = iter([rollouts[i] for i in index])

    def score(logps, own, mask):
        one = next(rows)
        reward, both = rewards[one.attempt.index], prompts[one.attempt.index]
        teacher, student = (dense_logps(trainer.model, both[role], one.completion_ids) for role in ("second", "distil"))
        if one.role == "second":
            gap = teacher - student
            ahead = gap.flip(0).cumsum(0).flip(0) if horizon == "rest" else gap
            return -(alpha * (reward - beta * ahead) * logps).sum()
        ratio = (logps - teacher).exp()
        clipped = torch.minimum(ratio * reward, ratio.clamp(1 - clip, 1 + clip) * reward)
        return -((1 - alpha) * (clipped + beta * logps)).sum()

    _, expected = row_loss(trainer, batch, batch["advantages"].unsqueeze(1), score)
    assert max(value.abs().max() for value in expected.values()) > 0
    check_gradients(trainer, batch, expected)


def test_the_teacher_alone_is_grpo_under_its_prompt(make_trainer):
    trainer = trainer_of(make_trainer, alpha=1.0, beta=0.0)
    batch = batch_of(trainer)
    trained = batch["advantages"].unsqueeze(1).clone()
    roles = [trainer.collected.rollouts[i].role for i in batch["distillation"].index.tolist()]
    trained[[role == "distil" for role in roles]] = 0.0
    assert trained.abs().sum() > 0
    check_gradients(trainer, batch, row_loss(trainer, batch, trained)[1])


def test_the_student_alone_without_a_context_is_grpo(make_trainer):
    trainer = trainer_of(make_trainer, {**TURNS, "source": "bare"}, alpha=0.0, beta=0.0)
    batch = batch_of(trainer)
    trained = batch["advantages"].unsqueeze(1).clone()
    roles = [trainer.collected.rollouts[i].role for i in batch["distillation"].index.tolist()]
    trained[[role == "second" for role in roles]] = 0.0
    check_gradients(trainer, batch, row_loss(trainer, batch, trained)[1])


def test_equal_rewards_leave_the_cross_entropy(make_trainer):
    trainer = trainer_of(make_trainer, reward=lambda completions, **_: [1.0] * len(completions), alpha=0.0, beta=0.3)
    batch = batch_of(trainer)
    roles = [trainer.collected.rollouts[i].role for i in batch["distillation"].index.tolist()]
    trained = torch.tensor([[0.3 * (role == "distil")] for role in roles])
    check_gradients(trainer, batch, row_loss(trainer, batch, trained)[1])


V = 3  # words of a toy of two tokens


def toy(seed):
    """Log-probabilities of all texts of two tokens, as a function of the logits of teacher and student."""
    draw = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(1 + V, V, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    texts = list(itertools.product(range(V), repeat=2))

    def logps(logits):
        log_p = logits.log_softmax(-1)
        return torch.stack([torch.stack([log_p[0, a], log_p[1 + a, b]]) for a, b in texts])  # (9, 2)

    return teacher, student, logps(teacher), logps(student)


def made(horizon, role, own, other, beta):
    """The method's advantages of all nine texts in a role, without rewards."""
    from dataclasses import replace

    from trl_opsd.methods.runtime import MethodRun

    count = len(own)
    options = {"alpha": 1.0 if role == "second" else 0.0, "beta": beta, "horizon": horizon}
    run, ones = MethodRun("pi_distill", options), torch.ones(count, 2, dtype=torch.float64)
    batch = replace(
        signals("pi_distill", ["privileged"]), step_context=run.step_context(["privileged"]),
        teacher_logps=other.detach().unsqueeze(0), student_logps=own.detach(), shares=ones.unsqueeze(0), mask=ones,
        loss_mask=ones, advantages=torch.zeros(count, 1, dtype=torch.float64),
        roles=Roles(torch.full((count,), 1 if role == "second" else 2), {}, {}, torch.tensor(1.0)),
    )  # fmt: skip
    return run.advantages(batch)


@pytest.mark.parametrize("seed", [0, 1])
def test_both_kl_terms_are_exact_in_expectation(seed):
    """Over all texts, weighed by the teacher's probabilities. With the horizon of a token the teacher's is not."""
    teacher, student, log_t, log_s = toy(seed)
    weight = log_t.sum(1).exp()
    kl = (weight * (log_t.sum(1) - log_s.sum(1).detach())).sum()
    (exact,) = torch.autograd.grad(-0.7 * kl, teacher, retain_graph=True)
    for horizon in ("rest", "token"):
        surrogate = (weight.detach().unsqueeze(1) * made(horizon, "second", log_t, log_s, 0.7) * log_t).sum()
        (got,) = torch.autograd.grad(surrogate, teacher, retain_graph=True)
        assert torch.allclose(got, exact, rtol=1e-9, atol=1e-12) == (horizon == "rest")
    kl = (weight.detach() * (log_t.sum(1).detach() - log_s.sum(1))).sum()
    (exact,) = torch.autograd.grad(-0.7 * kl, student, retain_graph=True)
    surrogate = (weight.detach().unsqueeze(1) * made("rest", "distil", log_s, log_t, 0.7) * log_s).sum()
    (got,) = torch.autograd.grad(surrogate, student)
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-12)
