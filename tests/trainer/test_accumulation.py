# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One update must not depend on how its rollouts are cut into micro-batches, or on the rows beside them."""

import pytest
import torch
from datasets import Dataset

from conftest import length_reward


SPLITS = [(8, 1), (4, 2), (1, 8)]  # rows of a micro-batch, micro-batches of an update


def scripted(trainer):
    """Replace sampling by completions that follow from the prompt, so that runs cut differently see the same ones."""

    def single_turn(prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        sums = [sum(ids) + 31 * i for i, ids in enumerate(prompt_ids)]
        # The second completion of a group differs from the first
        return [[3 + (s * (j + 7)) % 250 for j in range(1 + s % 7)] + [2] for s in sums], None

    trainer._generate_single_turn = single_turn
    return trainer


def updated(make_trainer, batch, steps, **options):
    trainer = scripted(
        make_trainer(
            per_device_train_batch_size=batch, gradient_accumulation_steps=steps, max_steps=1, max_grad_norm=0.0,
            optim="sgd", learning_rate=1.0, shuffle_dataset=False, **options,
        )
    )  # fmt: skip
    before = {name: param.detach().clone() for name, param in trainer.model.named_parameters()}
    trainer.train()
    return {name: param.detach() - before[name] for name, param in trainer.model.named_parameters()}


CASES = [
    {},
    {"distillation_reduction": "sequence_mean"},
    {"reward_funcs": length_reward},
    {"reward_funcs": length_reward, "distillation_mode": "sampled_token", "distillation_alpha": 1.0},
    {"num_loss_tokens_to_skip": 2, "distillation_mode": "topk_logits", "distillation_topk": 4},
    {"mask_truncated_completions": True},
]


@pytest.mark.parametrize("options", CASES, ids=lambda case: "-".join(case) or "default")
def test_accumulation_gives_the_same_update(make_trainer, options):
    """Only some rows have a view, so some micro-batches have none at all."""
    updates = [updated(make_trainer, batch, steps, **options) for batch, steps in SPLITS]
    assert max(change.abs().max() for change in updates[0].values()) > 1e-4
    for other in updates[1:]:
        for name, change in updates[0].items():
            torch.testing.assert_close(other[name], change, rtol=1e-3, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("mode", ["full_logits", "sampled_token"])
def test_rows_without_a_view_dilute_nothing(make_trainer, rows, mode, reduction):
    """The update of eight rows of which four have a view is the update of those four alone."""
    options = {"distillation_mode": mode}
    if mode == "sampled_token":
        if reduction == "sequence_mean":
            pytest.skip("the reduction of this mode is TRL's `loss_type`")
        options["distillation_alpha"] = 1.0
    else:
        options["distillation_reduction"] = reduction
    with_view = [row for row in rows if row["privileged_context"]][:4]
    without = [{**row, "privileged_context": None} for row in rows[8:12]]
    # Scripted completions depend on the place in the batch, so the four keep theirs
    alone = updated(make_trainer, 4, 1, dataset=Dataset.from_list(with_view), **options)
    among = updated(make_trainer, 8, 1, dataset=Dataset.from_list(with_view + without), **options)
    for name, change in alone.items():
        torch.testing.assert_close(among[name], change, rtol=1e-3, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")
