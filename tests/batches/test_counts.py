# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Normalisers over loss types, masking and rows without a view, against dense means in float64."""

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from trl.trainer.utils import FusedCausalLMOutput

from batches import batch_of
from trl_opsd.batches.counts import Counts
from trl_opsd.config.validation import RATIO_LOSS_TYPES


# Rows that end, rows that are cut off, and of each some without a view
ROWS = [
    {"prompt": [{"role": "user", "content": f"What is {i}?"}], "privileged_context": f"It is {i}." if i % 4 else None}
    for i in range(8)
]
REDUCTIONS = ("token_mean", "sequence_mean", "joint_token_mean")


def rollouts(prompts, trainer):
    """Completions of several lengths; every other one does not end."""
    end = trainer._tokenizer.eos_token_id
    ids = [[10 + i, *range(20, 20 + i % 3), 30, end if i % 2 else 40] for i in range(len(prompts))]
    return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": ids, "logprobs": None}


def made(make_trainer, **options):
    return make_trainer(
        dataset=Dataset.from_list(ROWS), rollout_func=rollouts, shuffle_dataset=False, per_device_train_batch_size=8,
        max_completion_length=5, **options,
    )  # fmt: skip


LOSS_TYPES = ("grpo", "sapo", "dr_grpo", "luspo", "bnpo", "dapo", "cispo", "vespo")


@pytest.mark.parametrize("masked", [False, True], ids=["all trained", "truncated ones masked"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_gap_is_a_mean_over_what_is_distilled(make_trainer, loss_type, masked):
    """The gradient of TRL's own loss on each token's log-probability, whose ratio is 1: minus its gap, in the mean that
    the loss type takes, but over what is distilled. Each token has the credit for its own gap."""
    bound = {"epsilon_high": 5.0} if loss_type == "cispo" else {}  # of its ratio
    trainer = made(
        make_trainer, distillation_mode="sampled_token", distillation_alpha=1.0, distillation_weight=0.7,
        loss_type=loss_type, mask_truncated_completions=masked, **bound,
    )  # fmt: skip
    inputs = batch_of(trainer)
    batch = inputs["distillation"]
    seen, signals = [], trainer.objective.signals
    trainer.objective.signals = lambda *given: seen.append(signals(*given)) or seen[-1]
    trainer._compute_loss(trainer.model, inputs)
    logps = seen[0].student_logps.detach().requires_grad_()
    output = FusedCausalLMOutput(log_probs=logps, entropy=seen[0].student_entropy)
    trainer._policy_loss(inputs)(output, trainer.method.advantages(seen[0])).backward()
    assert trainer.importance_sampling_level == "token"

    gap, taught, own = seen[0].gap.double(), batch.mask.double(), batch.loss_mask.double()
    rows, length = taught.any(1).sum(), own.sum(1, keepdim=True).clamp(min=1)
    share = {
        "grpo": taught / length / rows,
        "sapo": taught / length / rows,
        "dr_grpo": taught / trainer.max_completion_length / rows,
        "luspo": taught / rows,
    }.get(loss_type, taught / taught.sum())
    assert 0 < rows < (4 if masked else 7) + 0.5 and (gap * taught).abs().max() > 1e-3
    torch.testing.assert_close(logps.grad.double(), -0.7 * gap * share, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_one_ratio_for_a_completion_gives_its_tokens_one_gradient(make_trainer, loss_type):
    """In the loss types that the config refuses for advantages of single tokens: +2 and -2 train nothing there."""
    trainer = made(make_trainer, loss_type=loss_type)
    trainer.importance_sampling_level = "sequence"
    inputs = batch_of(trainer)
    shape = inputs["completion_mask"].shape
    logps, advantages = torch.full(shape, -3.0, requires_grad=True), torch.zeros(shape)
    advantages[:, 0], advantages[:, 1] = 2.0, -2.0
    output = FusedCausalLMOutput(log_probs=logps, entropy=torch.ones(shape))
    trainer._policy_loss(inputs)(output, advantages).backward()
    first, second = logps.grad[:, :2].T
    lost = bool((first.abs() < 1e-2 * logps.grad.abs().max().clamp(min=1.0)).all() and torch.equal(first, second))
    assert lost == (loss_type in RATIO_LOSS_TYPES)
    assert lost or ((first < 0) & (second > 0)).all()


@pytest.mark.parametrize("masked", [False, True], ids=["all trained", "truncated ones masked"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_of_tokens_make_the_mean_that_the_reduction_names(make_trainer, reduction, masked):
    trainer = made(make_trainer, distillation_reduction=reduction, mask_truncated_completions=masked)
    inputs = batch_of(trainer)
    batch, loss = inputs["distillation"], torch.rand(inputs["distillation"].mask.shape, dtype=torch.float64)
    taught = batch.mask.double()
    # Of all rollouts: those without a view are not in the micro-batch, as they train nothing
    own = sum(len(one.completion_ids) for one in trainer.collected.rollouts if not (masked and one.truncated))
    wanted = {
        "token_mean": (loss * taught).sum() / taught.sum(),
        "joint_token_mean": (loss * taught).sum() / own,
        "sequence_mean": ((loss * taught).sum(1) / taught.sum(1).clamp(min=1)).sum() / taught.any(1).sum(),
    }[reduction]
    found = (loss * trainer.objective.weights(batch, 1.0).sum(0)).sum()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_nothing_distilled_divides_by_no_zero():
    counts = Counts.gather(torch.zeros(2, 3), torch.ones(2, 3), Accelerator(cpu=True))
    assert [value.item() for value in vars(counts).values()] == [0, 0, 6, 2]
    for reduction in REDUCTIONS:
        assert not counts.token_weights(torch.zeros(2, 3), reduction, 1.0).any()
    assert counts.dilution("grpo", torch.tensor(6.0)) == 2 and counts.dilution("dapo", torch.tensor(6.0)) == 6
