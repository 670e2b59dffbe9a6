# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The tensors of a micro-batch that the distillation term adds to TRL's.

TRL keeps a generation batch as a dict, which it shuffles and splits by the first dimension of its values. Until then
the values here are flat keys of that dict ([`with_flat_keys`]). Afterwards [`DistillationBatch.take`] makes one typed
value of them, under the key `KEY` of each micro-batch.

Legend: B rows, C completion tokens, K views, M distilled tokens.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from trl_opsd.batches.counts import COUNTS, Counts
from trl_opsd.batches.encoded_view import VIEW_PREFIX, ViewTensors, views_of
from trl_opsd.batches.roles import Roles
from trl_opsd.batches.teacher_batch import TeacherBatch


Inputs = dict[str, Any]

KEY = "distillation"
MASK = f"{KEY}/mask"
TAUGHT = f"{VIEW_PREFIX}taught/"
PROMPT_IDS = f"{VIEW_PREFIX}prompt_ids/"
_PER_ROW = ("mask", "index", "success", "group_success_rate")
_PER_GENERATION = ("generation", "generation_size")


def with_flat_keys(
    inputs: Inputs,
    views: list[ViewTensors],
    tokens_to_skip: int,
    accelerator: Accelerator,
    known: dict[str, torch.Tensor],
    roles: list[str] | None = None,
) -> Inputs:
    """
    A generation batch with the flat keys of these views, in place of others. A collective, as tokens are counted over
    all processes.

    Args:
        inputs (`dict`): TRL's generation batch of this process.
        views (`list[ViewTensors]`): Its K views, with the same names on every process.
        tokens_to_skip (`int`): `num_loss_tokens_to_skip`.
        accelerator (`Accelerator`): Sums over processes.
        known (`dict[str, torch.Tensor]`): The other fields of [`DistillationBatch`] that are not made of these.
        roles (`list[str]` of length B, *optional*): Role of each row, in a run with `turns`.
    """
    inputs = without_flat_keys(inputs)
    loss_mask = loss_mask_of(inputs)
    mask = distillation_mask(loss_mask, view_weights(views).sum(0) > 0, tokens_to_skip)
    counts = Counts.gather(mask, loss_mask, accelerator)
    dealt = None if roles is None else Roles.gather(roles, loss_mask, counts.distilled_tokens, accelerator)
    return inputs | _flat(views, counts, {"mask": mask, **known}, dealt)


def without_flat_keys(inputs: Inputs) -> Inputs:
    """A generation batch as TRL made it."""
    return {name: value for name, value in inputs.items() if not name.startswith(f"{KEY}/")}


def loss_mask_of(inputs: Inputs) -> torch.Tensor:
    """1 at the tokens that the model wrote, `(B, C)`."""
    return inputs["completion_mask"] * inputs.get("tool_mask", 1)  # TRL pads `tool_mask` with 1


def view_weights(views: list[ViewTensors]) -> torch.Tensor:
    """Weight of each view at each token, `(K, B, C)`, 0 where it may not teach the token."""
    return torch.stack([view.weight.unsqueeze(1) * view.taught for view in views])


@dataclass
class DistillationBatch:
    """
    A micro-batch as the distillation term reads it.

    Args:
        views (`dict[str, ViewTensors]` of length K): Its views by name, with the same names on every process.
        mask (`torch.Tensor` of shape `(B, C)`): 1 at distilled tokens.
        loss_mask (`torch.Tensor` of shape `(B, C)`): 1 at all tokens that the model wrote.
        token_index (`torch.Tensor` of shape `(M,)`): The distilled tokens, counted along the rows, `(B, C)`.
        relative_positions (`torch.Tensor` of shape `(B, C)`): Position among the model tokens of the row, in (0, 1).
        turns (`torch.Tensor` of shape `(B, C)`): Number of the turn that a token is of, -1 where the model did not
            write it.
        shares (`torch.Tensor` of shape `(K, B, C)`): Share of each view at each token, 0 where it does not teach it.
        sampler_logps (`torch.Tensor` of shape `(B, C)`, *optional*): Log-probabilities that `distillation_is_clip`
            compares the current ones with, `nan` where the sampler gave none. Under
            `vllm_importance_sampling_correction` they are the trainer's at sampling time, as TRL's ratio, which is
            among the token weights, leads from the sampler to them: current / trainer's * trainer's / sampler's. A
            backend that gives no log-probabilities samples from the trainer's own weights; then too they are the
            trainer's, where TRL has them.
        importance_ratio (`torch.Tensor` of shape `(B, C)` or `(B, 1)`, *optional*): TRL's ratio of trainer to vLLM,
            without gradient.
        advantages (`torch.Tensor` of shape `(B,)`): The verifier's.
        num_items (`torch.Tensor`): TRL's `num_items_in_batch`, 0-d.
        success, group_success_rate (`torch.Tensor` of shape `(B,)`): Whether the rollout had success, as 0 or 1, and
            the share of its group's rollouts that had.
        index (`torch.Tensor` of shape `(B,)`): Position of each row in the global generation batch.
        generation, generation_size (`int`): Number of that generation batch, and its rows.
        counts ([`Counts`]): Rows and tokens of that generation batch.
        roles ([`Roles`], *optional*): Roles of the rows, in a run with `turns`.
        teacher_batches (`list[TeacherBatch]`): The teacher's forwards, planned by
            [`~trl_opsd.batches.teacher_plan.plan_teacher_batches`].
    """

    views: dict[str, ViewTensors]
    mask: torch.Tensor
    loss_mask: torch.Tensor
    token_index: torch.Tensor
    relative_positions: torch.Tensor
    turns: torch.Tensor
    shares: torch.Tensor
    sampler_logps: torch.Tensor | None
    importance_ratio: torch.Tensor | None
    advantages: torch.Tensor
    num_items: torch.Tensor
    success: torch.Tensor
    group_success_rate: torch.Tensor
    index: torch.Tensor
    generation: int
    generation_size: int
    counts: Counts
    roles: Roles | None = None
    teacher_batches: list[TeacherBatch] = field(default_factory=list)

    @classmethod
    def take(cls, inputs: Inputs) -> Inputs:
        """A micro-batch with one [`DistillationBatch`] under `KEY` in place of the flat keys."""
        views, loss_mask = views_of(inputs), loss_mask_of(inputs)
        mask = inputs[MASK]
        logps = inputs.get("sampling_per_token_logps")
        if logps is None or "importance_sampling_ratio" in inputs:
            logps = inputs.get("old_per_token_logps")
        batch = cls(
            views=views,
            loss_mask=loss_mask,
            token_index=mask.flatten().nonzero().squeeze(1),
            relative_positions=relative_positions(loss_mask),
            turns=turn_numbers(loss_mask),
            shares=view_shares(view_weights(list(views.values()))) * mask,
            sampler_logps=logps,
            importance_ratio=inputs.get("importance_sampling_ratio"),
            advantages=inputs["advantages"],
            num_items=inputs["num_items_in_batch"],
            counts=Counts(**{name: inputs[f"{KEY}/{name}"] for name in COUNTS}),
            roles=Roles.taken(inputs, f"{KEY}/"),
            **{name: inputs[f"{KEY}/{name}"] for name in _PER_ROW},
            **{name: int(inputs[f"{KEY}/{name}"]) for name in _PER_GENERATION},
        )
        return {**without_flat_keys(inputs), KEY: batch}

    def flat(self) -> Inputs:
        """The flat keys of which [`take`] makes the same batch."""
        rows = {name: getattr(self, name) for name in _PER_ROW}
        generation = {name: torch.tensor(getattr(self, name)) for name in _PER_GENERATION}
        return _flat(list(self.views.values()), self.counts, rows | generation, self.roles)


def _flat(views: list[ViewTensors], counts: Counts, values: dict[str, torch.Tensor], roles: Roles | None) -> Inputs:
    keys = {name: value for view in views for name, value in view.flat().items()}
    values = values | {name: getattr(counts, name) for name in COUNTS} | ({} if roles is None else roles.flat())
    return keys | {f"{KEY}/{name}": value for name, value in values.items()}


def distillation_mask(loss_mask: torch.Tensor, taught: torch.Tensor, tokens_to_skip: int) -> torch.Tensor:
    """
    Mask of the distilled tokens: model tokens that a view teaches, but for the first `tokens_to_skip` of each row.

    Args:
        loss_mask (`torch.Tensor` of shape `(B, C)`): 1 at model tokens, 0 at padding and tool results.
        taught (`torch.Tensor` of shape `(B, C)`): Whether a view of the row may teach the token.
        tokens_to_skip (`int`): Model tokens to leave out at the start of each row.
    """
    mask = loss_mask * taught.to(loss_mask.dtype)
    return mask * (loss_mask.cumsum(1) > tokens_to_skip).to(mask.dtype)


def view_shares(weights: torch.Tensor) -> torch.Tensor:
    """
    Share of each view at each token, of shape `(K, B, C)`: its weight over the sum of the weights, 0 without any view.

    Args:
        weights (`torch.Tensor` of shape `(K, B, C)`): Weight of each view, 0 where it does not teach the token.
    """
    return weights / weights.sum(0, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def relative_positions(loss_mask: torch.Tensor) -> torch.Tensor:
    """
    Relative position of each model token in its completion, of shape `(B, C)`: (i - 0.5) / n for the i-th of n.

    Args:
        loss_mask (`torch.Tensor` of shape `(B, C)`): 1 at model tokens.
    """
    return (loss_mask.cumsum(1) - 0.5) / loss_mask.sum(1, keepdim=True).clamp(min=1)


def turn_numbers(loss_mask: torch.Tensor) -> torch.Tensor:
    """
    Number of the turn that each token is of, from 0, and -1 where the model did not write it, `(B, C)`. As for
    [`~trl_opsd.rollouts.rollout.Turn`], a run of model tokens is a turn.

    Args:
        loss_mask (`torch.Tensor` of shape `(B, C)`): 1 at model tokens.
    """
    begins = loss_mask.diff(dim=1, prepend=torch.zeros_like(loss_mask[:, :1])) > 0
    return torch.where(loss_mask > 0, begins.cumsum(1) - 1, -1)
