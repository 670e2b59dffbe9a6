# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""SDPO: generalised JSD on the student's top-k and a tail, importance weights, siblings; its trust-region teacher."""

import math

import pytest
import torch

from method_cases import CLOSE, check_loss, random
from scripted import right, sums, writing
from trl_opsd import OPSDConfig
from trl_opsd.kernels import Head, LinearDivergenceInputs, linear_divergence
from trl_opsd.methods.runtime import MethodRun


def jsd_with_tail(log_p, log_q, k, alpha=0.5):
    """beta KL(q||m) + (1 - beta) KL(p||m) of the k most likely tokens of p and one class for the others."""
    ids = log_p.topk(k, -1).indices

    def classes(log_probs):
        chosen = log_probs.exp().gather(-1, ids)
        return torch.cat([chosen, 1 - chosen.sum(-1, keepdim=True)], -1)

    p, q = classes(log_p), classes(log_q)
    m = (1 - alpha) * p + alpha * q
    return (alpha * q * (q / m).log() + (1 - alpha) * p * (p / m).log()).sum(-1)


def test_loss():
    loss = check_loss(
        "sdpo", ["privileged"], lambda log_p, log_qs, _: jsd_with_tail(log_p, log_qs[0], 4), distillation_topk=4
    )
    assert loss > 0


def test_loss_with_rich_feedback():
    def reverse_kl_with_tail(log_p, log_qs, labels):
        ids = log_p.topk(3, -1).indices
        sides = [torch.cat([x.gather(-1, ids), (1 - x.exp().gather(-1, ids).sum(-1, keepdim=True)).log()], -1)
                 for x in (log_p, log_qs[0])]  # fmt: skip
        return (sides[0].exp() * (sides[0] - sides[1])).sum(-1)

    check_loss("sdpo", ["privileged"], reverse_kl_with_tail, distillation_topk=3, distillation_alpha=1.0)


def test_a_token_that_grew_too_likely_counts_twice_at_most():
    draw, n, v = random(0), 5, 9
    hidden, head = torch.randn(n, 4, generator=draw).double(), Head(torch.randn(v, 4, generator=draw).double())
    config = OPSDConfig("unused", method="sdpo", bf16=False, num_generations=2, distillation_topk=4)
    labels = torch.arange(n)
    logps = (hidden @ head.weight.T).log_softmax(-1)[torch.arange(n), labels]
    ratios = torch.tensor([0.5, 1.0, 1.5, 2.0, 8.0], dtype=torch.float64)

    def loss(old):
        task = LinearDivergenceInputs(
            head=head, teacher_hidden=torch.randn(1, n, 4, generator=random(1)).double(), teacher_heads=[head],
            labels=labels, weights=torch.ones(1, n).double(), spec=config.divergence_spec, old_logps=old,
        )  # fmt: skip
        total, stats = linear_divergence(hidden, task)
        return total, stats["loss"][0]

    total, losses = loss(logps - ratios.log())
    torch.testing.assert_close(total, (losses * ratios.clamp(max=2.0)).sum(), **CLOSE)


def test_trust_region():
    """One target: the softmax of both logits, mixed; its shares are the weights of the views."""

    def mixed(log_p, log_qs, labels):
        base, current = log_qs
        return jsd_with_tail(log_p, (0.5 * base + 0.5 * current).softmax(-1).log(), 4)

    check_loss("sdpo_trust_region", ["start", "current"], mixed, distillation_topk=4)
    config = OPSDConfig("unused", method="sdpo_trust_region", bf16=False, num_generations=2)
    weights = [part["sibling"]["weight"] for part in config.privileged_source["all_of"]]
    assert weights == [0.95, 0.05] and config.distillation_target == "geometric"


@pytest.mark.parametrize("name", ["sdpo", "sdpo_trust_region"])
def test_identical_contexts_and_no_reward_in_the_loss(name):
    options = {"method": name, "bf16": False, "num_generations": 2}
    config = OPSDConfig("unused", **options)
    assert config.policy_weight == 0.0 and config.distillation_is_clip == 2.0
    spec = MethodRun(name, None).spec(config.divergence_spec, ["privileged"])
    draw = random(2)
    hidden = torch.randn(4, 3, generator=draw, dtype=torch.float64).requires_grad_()
    head = Head(torch.randn(150, 3, generator=draw, dtype=torch.float64))
    task = LinearDivergenceInputs(
        head=head, teacher_hidden=hidden.detach()[None], teacher_heads=[head], labels=torch.arange(4),
        weights=torch.ones(1, 4).double(), spec=spec,
    )  # fmt: skip
    loss, _ = linear_divergence(hidden, task)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-15) and hidden.grad.abs().max() < 1e-15


# By what the four rollouts of each of two prompts write: who has a view
WRITTEN = {
    "some right": (["2", "no", "2", "no"], [True, True, True, True]),
    "one right": (["2", "no", "nor", "never"], [False, True, True, True]),
    "all wrong": (["a", "b", "c", "d"], [False] * 4),
    "all right": (["2", "2", "2", "2"], [True] * 4),
}


@pytest.mark.parametrize(("texts", "taught"), WRITTEN.values(), ids=WRITTEN)
def test_views_by_success(make_trainer, texts, taught):
    trainer = make_trainer(
        dataset=sums(), method="sdpo", reward_funcs=right, rollout_func=writing(texts, ["a", "b", "c", "d"]),
        num_generations=4, per_device_train_batch_size=8, max_completion_length=16, max_steps=1,
    )  # fmt: skip
    trainer.train()
    log = trainer.state.log_history[0]
    assert [bool(row) for row in trainer.collected.views] == taught + [False] * 4
    assert math.isfinite(log["loss"]) and (log["grad_norm"] > 0) == any(taught)
