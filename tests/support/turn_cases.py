# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Runs with turns on known texts, and what a float64 reference makes of their rows."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from batches import completions, student_prompts


def numbered(trainer: Any) -> list[list[list[int]]]:
    """Texts of three to six tokens, another one for each prompt and place of each call; returned are the prompts of the
    calls, as they come."""
    calls: list[list[list[int]]] = []

    def single_turn(prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        calls.append([list(ids) for ids in prompt_ids])
        seeds = [sum(ids) + 31 * i + 97 * len(calls) for i, ids in enumerate(prompt_ids)]
        return [[3 + (seed * (j + 7)) % 250 for j in range(2 + seed % 4)] + [2] for seed in seeds], None

    trainer._generate_single_turn = single_turn
    return calls


def row_loss(
    trainer: Any, batch: dict[str, Any], advantages: torch.Tensor, score: Callable[..., torch.Tensor] | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """
    Policy loss of a micro-batch at ratio 1 in float64, each row by itself, and its gradients.

    Args:
        trainer (`OPSDTrainer`): Whose model.
        batch (`dict`): A micro-batch that is a whole generation batch.
        advantages (`torch.Tensor` of shape `(B, C)` or `(B, 1)`): In place of those of the batch.
        score (`Callable`, *optional*): From log-probabilities and advantages of a row to its loss, before the mean over
            the tokens. By default the policy gradient.
    """
    model = copy.deepcopy(trainer.model).double()
    model.__dict__.pop("forward", None)
    mask = batch["completion_mask"] * batch["tool_mask"]
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    for row, (head, tail) in enumerate(zip(student_prompts(batch), completions(batch), strict=True)):
        ids = torch.tensor([head + tail], device=model.device)
        logits = type(model).forward(model, input_ids=ids).logits[0, len(head) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, ids[0, len(head) :].unsqueeze(1)).squeeze(1)
        own = advantages[row].double().expand(mask.shape[1])[: len(tail)]
        kept = mask[row, : len(tail)]
        if score is None:
            total = total - (own * logps * kept).sum()
        else:
            total = total + score(logps, own, kept)
    loss = total / mask.sum()
    loss.backward()
    zeros = {name: torch.zeros_like(param) for name, param in model.named_parameters()}
    return loss.item(), {name: zeros[name] if p.grad is None else p.grad for name, p in model.named_parameters()}


def check_gradients(trainer: Any, batch: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    """The trainer's own gradients of a micro-batch are these, up to float32."""
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, batch).backward()
    largest = max(value.abs().max() for value in expected.values())
    for name, weight in trainer.model.named_parameters():
        found = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(
            found.double(), expected[name], rtol=1e-3, atol=float(2e-5 * largest) + 1e-9, msg=name
        )


def by_role(trainer: Any) -> list[str]:
    """Role of each rollout of the latest generation batch."""
    return [rollout.role for rollout in trainer.collected.rollouts]
