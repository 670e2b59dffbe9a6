# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The distillation term of one micro-batch: teacher forwards, token weights, and what the student's forward is asked for.

Legend: B rows of the micro-batch, P prompt tokens, C completion tokens, H hidden size, K views.
"""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from trl.trainer.utils import FusedCausalLMOutput

from trl_opsd.batches.teacher_batch import TeacherBatch, is_live, view_names, view_weights
from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.kernels import TOKEN_STATS
from trl_opsd.losses import distillation_mask, relative_positions, token_weights, view_shares
from trl_opsd.methods.base import TokenSignals
from trl_opsd.methods.runtime import MethodRun
from trl_opsd.model.forward import StudentRequest, TeacherRequest
from trl_opsd.teacher.teacher import Teacher, live_forward


Batch = dict[str, Any]
PolicyLoss = Callable[[FusedCausalLMOutput], torch.Tensor]

# `loss_type`s of GRPO that divide by a number of sequences; the others divide by a number of tokens
_SEQUENCE_LOSS_TYPES = ("grpo", "sapo", "luspo", "dr_grpo")


def batch_keys(inputs: Batch, tokens_to_skip: int, accelerator: Accelerator) -> Batch:
    """
    Keys that a generation batch gains once its views are there: which tokens are distilled, and how many there are.

    The counts are over the generation batch of all ranks, like TRL's `num_items_in_batch`, as 0-d tensors.

    Args:
        inputs (`dict`): The local generation batch with the keys of its views.
        tokens_to_skip (`int`): `num_loss_tokens_to_skip`.
        accelerator (`Accelerator`): Reduces over ranks.
    """
    loss_mask = loss_mask_of(inputs)
    mask = distillation_mask(loss_mask, view_weights(inputs).sum(0) > 0, tokens_to_skip)
    counts = torch.stack([mask.sum(), mask.any(1).sum(), loss_mask.any(1).sum(), loss_mask.sum()]).float()
    tokens, rows, all_rows, all_tokens = accelerator.reduce(counts, reduction="sum")
    return {
        "distillation_mask": mask,
        "distillation_tokens": tokens,
        "distillation_rows": rows,
        "rollout_rows": all_rows,
        "rollout_tokens": all_tokens,
    }


def loss_mask_of(inputs: Batch) -> torch.Tensor:
    """1 at the tokens that the model wrote, `(B, C)`."""
    return inputs["completion_mask"] * inputs.get("tool_mask", 1)  # TRL pads `tool_mask` with 1


def sampler_logps(inputs: Batch) -> torch.Tensor | None:
    """
    Log-probabilities `(B, C)` that `distillation_is_clip` compares the current ones with: the sampler's, `nan` where it
    gave none.

    Under `vllm_importance_sampling_correction` they are the trainer's at sampling time, as TRL's ratio, which is among
    the token weights, leads from the sampler to them: current / trainer's * trainer's / sampler's. A backend that gives
    no log-probabilities samples from the trainer's own weights; then too they are the trainer's, where TRL has them.
    """
    logps = inputs.get("sampling_per_token_logps")
    return inputs.get("old_per_token_logps") if logps is None or "importance_sampling_ratio" in inputs else logps


class DistillationObjective:
    """
    Args:
        args ([`OPSDConfig`]): Options of the loss.
        teacher ([`Teacher`]): Whose weights answer.
        accelerator (`Accelerator`): For autocast and the number of processes.
        method ([`~trl_opsd.methods.runtime.MethodRun`]): What changes the loss.
    """

    def __init__(self, args: OPSDConfig, teacher: Teacher, accelerator: Accelerator, method: MethodRun):
        self.args, self.teacher, self.accelerator, self.method = args, teacher, accelerator, method
        self.spec = args.divergence_spec

    def vocabulary_request(
        self, model: nn.Module, inputs: Batch, windows: float, policy: PolicyLoss, policy_weight: float
    ) -> StudentRequest:
        """
        Run the teacher and say what the student's forward has to compute, for a divergence over the vocabulary.

        Args:
            model (`nn.Module`): The wrapped student.
            inputs (`dict`): The micro-batch.
            windows (`float`): Accumulation windows in the generation batch that the counts of `inputs` span.
            policy (`Callable`): Gives the policy loss from TRL's output. It does not run at weight 0.
            policy_weight (`float`): Its weight.
        """
        mask, views = inputs["distillation_mask"], view_names(inputs)
        index = mask.flatten().nonzero().squeeze(1)
        old_logps = sampler_logps(inputs)
        return StudentRequest(
            spec=self.method.spec(self.spec, views),
            index=index,
            teacher_hidden=self._answers(model, inputs, index)[0],
            teacher_head=self.teacher.head,
            weights=self.weights(inputs, windows).flatten(1)[:, index],
            live=[is_live(inputs, view) for view in views],
            relative_positions=relative_positions(loss_mask_of(inputs)).flatten()[index],
            old_logps=None if old_logps is None else old_logps.flatten()[index],
            hidden_state_loss=self.method.hidden_state_loss(views),
            policy=None if policy_weight == 0 else lambda output: policy_weight * policy(output),
            **self._shared_arguments(mask),
        )

    def sampled_token_request(
        self, model: nn.Module, inputs: Batch, policy: PolicyLoss, policy_weight: float
    ) -> StudentRequest:
        """
        The same for `distillation_mode="sampled_token"`: TRL's loss, with advantages of shape `(B, C)` that hold the
        teacher's gap. They are written to `inputs` once the student's log-probabilities are there, so that the gap is
        that of the current student. What is recorded is in `stats` of the pass. TRL's loss applies its ratio of trainer
        to vLLM to all of its advantages, so it is not applied here.
        """
        mask = inputs["distillation_mask"]
        logps, entropy = self._scores(model, inputs)  # (K, B, C)
        stats = {"teacher_logps": logps, "teacher_entropy": entropy, "clipped": torch.zeros_like(logps)}

        def loss(output: FusedCausalLMOutput) -> torch.Tensor:
            stats["student_logps"], stats["student_entropy"] = output.log_probs.detach(), output.entropy.detach()
            stats["loss"] = stats["divergence"] = stats["student_logps"] - logps  # of the reverse KL, by its one sample
            inputs["advantages"] = self.sampled_advantages(inputs, stats, policy_weight)
            return policy(output)

        return StudentRequest(
            spec=self.spec,
            index=mask.new_zeros(0, dtype=torch.long),
            teacher_hidden=logps.new_zeros(0, 0, 0),
            teacher_head=self.teacher.head,
            weights=logps.new_zeros(0, 0),
            policy=loss,
            stats=stats,
            **self._shared_arguments(mask),
        )

    def _shared_arguments(self, mask: torch.Tensor) -> dict[str, Any]:
        return {
            "completion_length": mask.shape[1],
            "temperature": self.args.temperature,
            "float32_head": self.args.cast_lm_head_to_fp32,
            "chunk_size": self.args.distillation_chunk_size,
        }

    def shares(self, inputs: Batch) -> torch.Tensor:
        """Share of each view at each token, of shape `(K, B, C)`, 0 where a token is not distilled."""
        return view_shares(view_weights(inputs)) * inputs["distillation_mask"]

    def weights(self, inputs: Batch, windows: float) -> torch.Tensor:
        """Factor on each token's loss under each view, of shape `(K, B, C)`: mask, share of the view, normaliser,
        `distillation_weight`, and TRL's ratio of trainer to vLLM where it corrects for their difference.

        The counts are those of the distilled tokens alone, over all ranks, so that rows without a view dilute nothing.
        DDP and its kin average gradients over ranks, hence the division by their number.
        """
        per_window = windows * self.accelerator.num_processes
        joint = self.args.distillation_reduction == "joint_token_mean"
        tokens = inputs["rollout_tokens" if joint else "distillation_tokens"] / per_window
        rows = inputs["distillation_rows"] / per_window
        mask = inputs["distillation_mask"]
        per_token = token_weights(mask, self.args.distillation_reduction, tokens, rows)
        ratio = inputs.get("importance_sampling_ratio", 1.0)  # (B, C), or (B, 1) of whole completions; no gradient
        return self.args.distillation_weight * self.shares(inputs) * per_token * ratio

    def sampled_advantages(self, inputs: Batch, stats: dict[str, torch.Tensor], policy_weight: float) -> torch.Tensor:
        """
        Advantages of shape `(B, C)` of `distillation_mode="sampled_token"`: the verifier's plus the teacher's gap
        log q(y_t) - log p(y_t), whose policy gradient is that of the reverse KL; or what the method makes of both.

        TRL divides by the number of all tokens (or rows); the gap is scaled by that number over the distilled ones, so
        that each term is a mean over its own.

        Args:
            inputs (`dict`): The micro-batch.
            stats (`dict[str, torch.Tensor]`): Log-probabilities of the sampled tokens and entropies, without gradient.
            policy_weight (`float`): Weight of the verifier's advantages.
        """
        signals = self.signals(inputs, stats, policy_weight)
        if self.method.method.advantages is not None:
            return self.method.method.advantages(signals)
        return signals.advantages + signals.scale * signals.gap

    def signals(self, inputs: Batch, stats: dict[str, torch.Tensor], policy_weight: float) -> TokenSignals:
        """What a method may look at: see [`TokenSignals`]."""
        if self.args.loss_type in _SEQUENCE_LOSS_TYPES:
            dilution = inputs["rollout_rows"] / inputs["distillation_rows"].clamp(min=1.0)
        else:
            dilution = inputs["num_items_in_batch"] / inputs["distillation_tokens"].clamp(min=1.0)
        known = {name: stats[name] for name in TOKEN_STATS}
        return TokenSignals(
            step_context=self.method.step_context(view_names(inputs)),
            **known,
            old_logps=sampler_logps(inputs),
            shares=self.shares(inputs),
            mask=inputs["distillation_mask"],
            loss_mask=loss_mask_of(inputs),
            advantages=policy_weight * inputs["verifier_advantages"].unsqueeze(1),
            success=inputs["rollout_success"].unsqueeze(1),
            group_success=inputs["group_success"].unsqueeze(1),
            scale=self.args.distillation_weight * dilution,
        )

    def _scores(self, model: nn.Module, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the completion's tokens and entropies under each view's teacher, `(K, B, C)`, at the
        sampling temperature; 0 where a token is not distilled."""
        mask = inputs["distillation_mask"]
        index = mask.flatten().nonzero().squeeze(1)
        scores = torch.stack(self._answers(model, inputs, index, self.args.temperature))  # (2, K, M)
        whole = scores.new_zeros(*scores.shape[:2], mask.numel())
        whole[:, :, index] = scores
        return tuple(whole.unflatten(-1, mask.shape))

    def _answers(
        self, model: nn.Module, inputs: Batch, index: torch.Tensor, score_temperature: float | None = None
    ) -> list[torch.Tensor]:
        """
        What the teacher says at the M tokens `index` of a micro-batch.

        Args:
            model (`nn.Module`): The wrapped student.
            inputs (`dict`): The micro-batch.
            index (`torch.Tensor` of shape `(M,)`): Tokens, counted along the rows.
            score_temperature (`float`, *optional*): See [`TeacherRequest`].

        Returns:
            Hidden states of shape `(K, M, H)`, or log-probabilities and entropies of shape `(K, M)`.
        """
        answers = {}
        for batch in inputs["teacher_batches"]:
            values = self._answer(model, batch, score_temperature)
            answers |= {view: [batch.values_at(value, view, index) for value in values] for view in batch.views}
        views = [answers[name] for name in view_names(inputs)]
        return [torch.stack(values) for values in zip(*views, strict=True)]

    def _answer(
        self, model: nn.Module, batch: TeacherBatch, score_temperature: float | None
    ) -> tuple[torch.Tensor, ...]:
        """One teacher forward, or what it gave the last time if the teacher has not moved since."""
        version = None if batch.live else self.teacher.version
        if batch.answer is not None and batch.answer[0] == version:
            return batch.answer[1]
        request = TeacherRequest(batch, score_temperature, self.args.cast_lm_head_to_fp32)
        reader = live_forward(model) if batch.live else self.teacher.teacher_forward(model)
        with reader as teacher, self.accelerator.autocast():
            values = teacher(**request.model_inputs(), distillation=request).answer
        if version is not None and self.args.num_iterations > 1:
            batch.answer = version, values
        return values
