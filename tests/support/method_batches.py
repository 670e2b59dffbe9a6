# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Generation batches of a real trainer, with answers that are known, for what a method's source and config decide."""

from collections.abc import Callable
from typing import Any

import torch

from batches import batch_of
from scripted import right, sums, writing
from trl_opsd import OPSDTrainer


SOLUTIONS = ["1 + 1 = 2", "2 + 3 = 5"]
MIXED, WRONG, RIGHT = ["no", "it is 2", "7", "2"], ["no", "6", "7", "8"], ["5", "2 + 3 = 5", "it is 5", "so 5"]


def scripted_trainer(
    make_trainer: Callable[..., OPSDTrainer], method: str, *texts: list[str], **options: Any
) -> OPSDTrainer:
    """
    A trainer of a method whose rollouts of "1 + 1?", then of "2 + 3?", are these texts, with a right answer's reward.

    Args:
        make_trainer (`Callable`): The fixture.
        method (`str`): Its name.
        texts (`list[str]`): The answers of a group.
        options: Of [`OPSDConfig`] or the trainer.
    """
    size = len(texts[0])
    given = {"reward_funcs": right, "num_generations": size, "per_device_train_batch_size": size * len(texts)}
    dataset = sums(privileged_context=SOLUTIONS)
    return make_trainer(
        method=method,
        dataset=dataset,
        rollout_func=writing(*texts),
        max_completion_length=200,
        **{**given, **options},
    )


def views_of(trainer: OPSDTrainer) -> list[dict[str, str | None]]:
    """The context of each view by name, for each rollout in order."""
    batch_of(trainer)
    return [{view.name: view.context for view in views} for views in trainer.collected.views]


def gradients(trainer: OPSDTrainer) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a micro-batch that the trainer samples, and its gradient on each parameter."""
    loss = trainer.compute_loss(trainer.model, batch_of(trainer))
    loss.backward()
    return loss.detach(), {name: one.grad for name, one in trainer.model.named_parameters() if one.grad is not None}


def norm(gradient: dict[str, torch.Tensor]) -> float:
    """Of all parameters together."""
    return sum(one.double().square().sum().item() for one in gradient.values()) ** 0.5
