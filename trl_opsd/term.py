# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The distillation term of one micro-batch: teacher forwards, token weights, and what the student's forward is asked for.

Legend: B rows of the micro-batch, P prompt tokens, C completion tokens, H hidden size, K views.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from trl_opsd.config import OPSDConfig
from trl_opsd.forward import StudentPass, TeacherPass
from trl_opsd.losses import DivergenceSpec, distillation_mask, token_weights, view_shares
from trl_opsd.teacher import Teacher


Batch = dict[str, Any]

# `loss_type`s of GRPO that divide by a number of sequences; the others divide by a number of tokens
_SEQUENCE_LOSS_TYPES = ("grpo", "sapo", "luspo", "dr_grpo")


def view_names(inputs: Batch) -> list[str]:
    """Names of the views in a batch, the same on every rank."""
    return [key.split("/", 1)[1] for key in inputs if key.startswith("teacher_weight/")]


def divergence_spec(args: OPSDConfig) -> DivergenceSpec:
    """The loss that the config describes."""
    return DivergenceSpec(
        alpha=args.distillation_alpha,
        temperature=args.temperature if args.distillation_temperature is None else args.distillation_temperature,
        topk=args.distillation_topk,
        topk_source=args.distillation_topk_source,
        add_tail=args.distillation_add_tail,
        entry_clip=args.distillation_entry_clip,
        entry_clip_mode=args.distillation_entry_clip_mode,
        token_clip=args.distillation_token_clip,
        token_clip_mode=args.distillation_token_clip_mode,
        is_clip=args.distillation_is_clip,
    )


def batch_keys(inputs: Batch, tokens_to_skip: int, accelerator: Accelerator) -> Batch:
    """
    Keys that a generation batch gains once its views are there: which tokens are distilled, and how many there are.

    The counts are over the generation batch of all ranks, like TRL's `num_items_in_batch`, as 0-d tensors.

    Args:
        inputs (`dict`): The local generation batch with the keys of its views.
        tokens_to_skip (`int`): `num_loss_tokens_to_skip`.
        accelerator (`Accelerator`): Reduces over ranks.
    """
    loss_mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)  # TRL pads `tool_mask` with 1
    has_view = torch.stack([inputs[f"teacher_weight/{name}"] for name in view_names(inputs)]).sum(0) > 0
    mask = distillation_mask(loss_mask, has_view, tokens_to_skip)
    counts = torch.stack([mask.sum(), mask.any(1).sum(), loss_mask.any(1).sum()]).float()
    tokens, rows, all_rows = accelerator.reduce(counts, reduction="sum")
    return {
        "distillation_mask": mask,
        "distillation_tokens": tokens,
        "distillation_rows": rows,
        "rollout_rows": all_rows,
    }


class DistillationTerm:
    """
    Args:
        args ([`OPSDConfig`]): Options of the loss.
        teacher ([`Teacher`]): Whose weights answer.
        accelerator (`Accelerator`): For autocast and the number of processes.
    """

    def __init__(self, args: OPSDConfig, teacher: Teacher, accelerator: Accelerator):
        self.args, self.teacher, self.accelerator = args, teacher, accelerator
        self.spec = divergence_spec(args)

    def student_pass(self, model: nn.Module, inputs: Batch, windows: float, policy_head: bool) -> StudentPass:
        """
        Run the teacher and say what the student's forward has to compute.

        Args:
            model (`nn.Module`): The wrapped student.
            inputs (`dict`): The micro-batch.
            windows (`float`): Accumulation windows in the generation batch that the counts of `inputs` span.
            policy_head (`bool`): Whether TRL's loss reads log-probabilities with gradient from the same forward.
        """
        hidden = [self._teacher_hidden(model, inputs, name) for name in view_names(inputs)]
        old_logps = inputs.get("old_per_token_logps")
        return StudentPass(
            spec=self.spec,
            teacher_hidden=hidden,
            teacher_head=self.teacher.head,
            weights=self.weights(inputs, windows),
            old_logps=inputs.get("sampling_per_token_logps") if old_logps is None else old_logps,
            policy_head=policy_head,
            float32_head=self.args.cast_lm_head_to_fp32,
        )

    def shares(self, inputs: Batch) -> torch.Tensor:
        """Share of each view at each token, of shape `(K, B, C)`, 0 where a token is not distilled."""
        weights = torch.stack([inputs[f"teacher_weight/{name}"] for name in view_names(inputs)])  # (K, B)
        return view_shares(weights).unsqueeze(-1) * inputs["distillation_mask"]

    def weights(self, inputs: Batch, windows: float) -> torch.Tensor:
        """Factor on each token's loss under each view, of shape `(K, B, C)`: mask, share of the view and normaliser.

        The counts are those of the distilled tokens alone, over all ranks, so that rows without a view dilute nothing.
        DDP and its kin average gradients over ranks, hence the division by their number.
        """
        per_window = windows * self.accelerator.num_processes
        tokens = inputs["distillation_tokens"] / per_window
        rows = inputs["distillation_rows"] / per_window
        mask = inputs["distillation_mask"]
        return self.shares(inputs) * token_weights(mask, self.args.distillation_reduction, tokens, rows)

    def sampled_advantages(
        self, inputs: Batch, teacher_logps: torch.Tensor, student_logps: torch.Tensor, policy_weight: float
    ) -> torch.Tensor:
        """
        Advantages of shape `(B, C)` of `distillation_mode="sampled_token"`: the verifier's plus the teacher's gap
        log q(y_t) - log p(y_t), whose policy gradient is that of the reverse KL.

        TRL divides by the number of all tokens (or rows); the gap is scaled by that number over the distilled ones, so
        that each term is a mean over its own.

        Args:
            inputs (`dict`): The micro-batch.
            teacher_logps (`torch.Tensor` of shape `(K, B, C)`): Log-probabilities of the sampled tokens.
            student_logps (`torch.Tensor` of shape `(B, C)`): The same under the student, without gradient.
            policy_weight (`float`): Weight of the verifier's advantages.
        """
        gap = (self.shares(inputs) * (teacher_logps - student_logps)).sum(0)
        if self.args.loss_type in _SEQUENCE_LOSS_TYPES:
            dilution = inputs["rollout_rows"] / inputs["distillation_rows"].clamp(min=1.0)
        else:
            dilution = inputs["num_items_in_batch"] / inputs["distillation_tokens"].clamp(min=1.0)
        advantages = policy_weight * inputs["advantages"].unsqueeze(1)
        return advantages + self.args.distillation_weight * dilution * gap

    def teacher_batch(self, inputs: Batch, name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        The rows that need the teacher's forward, and its inputs: teacher prompt and the student's own completion ids.

        Never empty: every rank runs the forward, as engines gather weights in it. Columns of padding are cut.

        Args:
            inputs (`dict`): The micro-batch.
            name (`str`): Name of the view.

        Returns:
            Row numbers of shape `(R,)`, and `input_ids` and `attention_mask` of shape `(R, P + C)`.
        """
        needed = (inputs[f"teacher_weight/{name}"] > 0) & inputs["distillation_mask"].any(1)
        rows = needed.nonzero().squeeze(1)
        if not len(rows):
            rows = needed.new_zeros(1, dtype=torch.long)
        prompt_ids, prompt_mask = (inputs[f"teacher_prompt_{part}/{name}"][rows] for part in ("ids", "mask"))
        width = int(prompt_mask.sum(1).max())
        completion_ids, completion_mask = inputs["completion_ids"][rows], inputs["completion_mask"][rows]
        batch = {
            "input_ids": torch.cat([prompt_ids[:, -width:], completion_ids], dim=1),
            "attention_mask": torch.cat([prompt_mask[:, -width:], completion_mask], dim=1),
        }
        if not torch.equal(batch["input_ids"][:, -completion_ids.shape[1] :], completion_ids):
            raise RuntimeError(f"The teacher of view {name!r} would read other completion ids than the student's.")
        return rows, batch

    def _teacher_hidden(self, model: nn.Module, inputs: Batch, name: str) -> torch.Tensor:
        """Hidden states of the teacher at the positions that predict the completion, `(B, C, H)`, 0 in other rows."""
        rows, batch = self.teacher_batch(inputs, name)
        count, length = inputs["completion_ids"].shape
        with self.teacher.answering(model) as teacher, self.accelerator.autocast():
            hidden = teacher(**batch, distillation=TeacherPass(length)).last_hidden_state
        if len(rows) == count:
            return hidden
        return hidden.new_zeros((count, *hidden.shape[1:])).index_copy(0, rows, hidden)
