# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""ROSD: SDPO's loss on what comes after the quoted error."""

import math

import pytest
import torch

from batches import batch_of, taught_by_rollout
from method_cases import check_loss
from scripted import right, saying, sums, writing


K = 4  # of the toy vocabulary, in place of 100
TEXT = "Quote: 1 + 1 = 3\nExplanation: It is 2."


def jsd_with_tail(log_p, log_qs, labels):
    ids = log_p.detach().topk(K, dim=-1).indices

    def classes(log_probs):
        rest = torch.ones_like(log_probs).scatter(-1, ids, 0).bool()
        tail = (log_probs.exp() * rest).sum(-1, keepdim=True).log()
        return torch.cat([log_probs.gather(-1, ids), tail], -1)

    p, q = classes(log_p), classes(log_qs[0])
    m = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (q.exp() * (q - m) + p.exp() * (p - m)).sum(-1)


def test_loss():
    check_loss("rosd", ["privileged"], jsd_with_tail, distillation_topk=K)


author = saying(TEXT)


def reflected(make_trainer, *answers):
    source = {"reflection": {"author": "test_rosd.author"}}
    size = len(answers[0])
    trainer = make_trainer(
        method="rosd", distillation_topk=K, privileged_source=source, dataset=sums(), reward_funcs=right,
        per_device_train_batch_size=2 * size, num_generations=size, shuffle_dataset=False,
        max_completion_length=200, rollout_func=writing(*answers),
    )  # fmt: skip
    return trainer, batch_of(trainer)


def test_wrong_rollouts_from_the_quote_on_and_right_ones_in_full(make_trainer):
    answers = ["I add. 1 + 1 = 3", "It is 2", "1 + 1 = 2"], ["It is 4", "It is 5", "So 5"]
    trainer, batch = reflected(make_trainer, *answers)
    in_full = [f"{text}<|im_end|>" for text in ("It is 2", "1 + 1 = 2", "It is 5", "So 5")]
    assert taught_by_rollout(trainer, batch) == ["1 + 1 = 3<|im_end|>", *in_full[:2], "", *in_full[2:]]
    assert trainer.policy_weight == 0


def test_a_lone_success_and_a_group_of_successes_teach_nothing(make_trainer):
    trainer, batch = reflected(make_trainer, ["I add. 1 + 1 = 3", "It is 2"], ["It is 5", "2 + 3 = 5"])
    assert taught_by_rollout(trainer, batch) == ["1 + 1 = 3<|im_end|>", "", "", ""]


@pytest.mark.parametrize("answer", ["It is 7", "1 + 1 = 3"], ids=["no quote", "with the quote"])
def test_all_wrong_teaches_nothing(make_trainer, answer):
    trainer, batch = reflected(make_trainer, [answer] * 2, [answer] * 2)
    assert taught_by_rollout(trainer, batch) == [""] * 4 and not batch["distillation"].counts.distilled_tokens.item()
    assert trainer.compute_loss(trainer.model, batch).item() == 0
