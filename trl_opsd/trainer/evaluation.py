# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Loss of an evaluation as sums and counts over all of its batches: `eval_loss`.

A batch's own loss is a mean over the rows or tokens of that batch alone. The mean of such means depends on the batch
size, and counts a batch in which nothing is distilled as one in which there is nothing left to learn.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import nn

from trl_opsd.batches.counts import ROW_LOSS_TYPES
from trl_opsd.batches.distillation_batch import DistillationBatch, loss_mask_of
from trl_opsd.model.forward import StudentRequest
from trl_opsd.monitoring.metrics import Sums
from trl_opsd.trainer.objective import DistillationObjective, PolicyLoss


logger = get_logger(__name__)

POLICY, DISTILLATION, BALANCING = "policy", "distillation", "balancing"
# Local sum and count of each term, 0-d tensors
Terms = dict[str, tuple[torch.Tensor, torch.Tensor]]


class ObservedPolicy:
    """
    Policy loss that keeps its value and, where it is given advantages of single tokens, its slope by them.

    TRL's losses are linear in the advantages while none changes its sign. So the slope times a part of the advantages,
    summed over tokens, is what this part adds to the loss.

    Args:
        policy (`Callable`): From TRL's output, and optionally advantages of shape `(B, C)`, to the loss.
    """

    def __init__(self, policy: Callable[..., torch.Tensor]):
        self.policy = policy
        self.value: torch.Tensor | None = None
        self.slope: torch.Tensor | None = None

    def __call__(self, output: Any, advantages: torch.Tensor | None = None) -> torch.Tensor:
        if advantages is None:
            value = self.policy(output)
        else:
            with torch.enable_grad():
                advantages = advantages.detach().requires_grad_()
                value = self.policy(output, advantages)
                (self.slope,) = torch.autograd.grad(value, advantages)
        self.value = value.detach()  # nothing of an evaluation is trained
        return self.value


class Evaluation:
    """
    Sums and counts of the terms of the loss over an evaluation.

    Args:
        objective ([`DistillationObjective`]): Whose loss it is.
        accelerator (`Accelerator`): Number of processes.
        loss_type (`str`): `loss_type` of GRPO.
        rows (`int`, *optional*): Rows of the evaluation, as often as they are sampled. `None` if unknown.
    """

    def __init__(self, objective: DistillationObjective, accelerator: Accelerator, loss_type: str, rows: int | None):
        self.objective, self.accelerator, self.loss_type, self.rows = objective, accelerator, loss_type, rows
        self.processes = accelerator.num_processes
        self.seen = self.size = self.new = 0  # rows before this batch; of this batch; and those that were not seen
        self.totals: dict[str, list[float]] = {}
        self._policy: ObservedPolicy  # of the batch

    # Rows

    def take_rows(self, local: int) -> int:
        """
        Begin the next batch. To give all processes equally many, the last one is filled with rows of the first.

        Args:
            local (`int`): Rows of this process.

        Returns:
            How many of them count: the first ones, as the others were seen before.
        """
        self.seen, self.size = self.seen + self.size, local * self.processes
        self.new = self.size if self.rows is None else min(max(self.rows - self.seen, 0), self.size)
        return min(max(self.new - self.accelerator.process_index * local, 0), local)

    def masked(self, output: dict[str, Any], rows: int) -> dict[str, Any]:
        """TRL's batch, in which only the first local `rows` are trained. A collective where any row is left out."""
        if self.new == self.size:
            return output
        mask = output["completion_mask"]
        counts = (torch.arange(len(mask), device=mask.device) < rows).to(mask.dtype)
        output = {**output, "completion_mask": mask * counts.unsqueeze(1)}
        return {**output, "num_items_in_batch": self.accelerator.gather(loss_mask_of(output).sum()).sum()}

    # Terms of the loss

    def request(self, model: nn.Module, batch: DistillationBatch, windows: float, policy: PolicyLoss) -> StudentRequest:
        """Request of a batch's losses as of [`DistillationObjective.request`], whose policy loss is kept apart."""
        self._policy = ObservedPolicy(policy)
        request = self.objective.request(model, batch, windows, self._policy)
        if request.policy is not None and not self.objective.sampled_token:
            self._policy = ObservedPolicy(request.policy)  # with its weight
            request.policy = self._policy
        return request

    def terms(
        self,
        batch: DistillationBatch,
        request: StudentRequest,
        loss: torch.Tensor,
        balancing: torch.Tensor | None,
    ) -> Terms:
        """
        Terms of a batch's loss: what they sum up locally, and the share of this process in what they are means over.

        Args:
            batch ([`DistillationBatch`]): The batch.
            request ([`StudentRequest`]): That of [`request`], which the student's forward has answered.
            loss (`torch.Tensor`): Policy and distillation loss of this process, 0-d.
            balancing (`torch.Tensor`, *optional*): What the MoE balancing loss adds to them, 0-d.
        """
        counts, reduction = batch.counts, self.objective.args.distillation_reduction
        local, share = self._averaged_locally(batch)
        if self.objective.sampled_token:
            added = (self._policy.slope * self.objective.gap_advantages(batch, request.stats)).sum()
            dilution = counts.dilution(self.loss_type, batch.num_items)
            distilled = added * local / dilution, counts.distilled_of_policy(self.loss_type) / self.processes
        else:
            added = loss if self._policy.value is None else loss - self._policy.value.to(loss.device)
            number = counts.averaged(reduction) / self.processes
            distilled = added * number.clamp(min=1.0), number
        terms = {DISTILLATION: distilled}
        if self.objective.policy_runs:
            terms[POLICY] = (loss - added) * local, share
        if balancing is not None:
            terms[BALANCING] = balancing * self.new / self.processes, torch.tensor(self.new / self.processes)
        return {name: (total.detach(), count) for name, (total, count) in terms.items()}

    def _averaged_locally(self, batch: DistillationBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows or tokens by which TRL divides the policy loss of this process, and how many of them count, 0-d."""
        if self.loss_type in ROW_LOSS_TYPES:
            return torch.tensor(float(len(batch.mask))), torch.tensor(self.new / self.processes)
        tokens = batch.loss_mask.sum() if self.loss_type == "bnpo" else batch.num_items / self.processes
        return tokens, tokens

    def add(self, sums: Sums) -> None:
        """Add the terms of a batch, reduced over all processes."""
        for name, (total, count) in sums.items():
            before = self.totals.get(name, (0.0, 0.0))
            self.totals[name] = [before[0] + total, before[1] + count]

    def loss(self, name: str, best: str | None) -> float:
        """
        Sum of the terms, each the mean over its own rows or tokens of the whole evaluation; `nan` if nothing was
        distilled in it, which is neither a good loss nor a bad one.

        Args:
            name (`str`): Name in the log, such as `eval_loss`.
            best (`str`, *optional*): `metric_for_best_model`.
        """
        if DISTILLATION not in self.totals:
            if best in (name, name.removeprefix("eval_")):
                logger.warning(
                    f"`{name}` is nan, as no rollout of this evaluation had a view, so this model can't be the best "
                    "one by it. Check the contexts of `eval_dataset`, and `num_generations_eval` if the source looks "
                    "at siblings, or set `metric_for_best_model`."
                )
            return math.nan
        return sum(total / count for total, count in self.totals.values())
