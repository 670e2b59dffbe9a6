# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The distillation objective: teacher forwards, token weights, and the request to the student's forward.

Legend: B rows of the micro-batch, C completion tokens, M distilled tokens, H hidden size, K views.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from trl.trainer.utils import FusedCausalLMOutput

from trl_opsd.batches.distillation_batch import DistillationBatch
from trl_opsd.batches.kept_outputs import KeptOutputs
from trl_opsd.batches.teacher_batch import Outputs, TeacherBatch
from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.kernels import TOKEN_STATS, KnownTokens
from trl_opsd.methods.base import TokenSignals
from trl_opsd.methods.runtime import MethodRun
from trl_opsd.model.forward import StudentRequest, TeacherRequest, TopTokensRequest
from trl_opsd.model.head_check import HeadCheckRequest, check_answers
from trl_opsd.teacher.teacher import Teacher, live_forward
from trl_opsd.trainer.prefix_sharing import PrefixSharing


TOP_TOKENS = 5  # in the record of single tokens

# From TRL's output, and advantages of shape (B, C) in place of those of the batch, to the policy loss
PolicyLoss = Callable[..., torch.Tensor]


class DistillationObjective:
    """
    The distillation loss of a micro-batch, as a request to the student's forward.

    Args:
        args ([`OPSDConfig`]): Options of the loss.
        teacher ([`Teacher`]): Whose weights answer.
        accelerator (`Accelerator`): For autocast and the number of processes.
        method ([`~trl_opsd.methods.runtime.MethodRun`]): What changes the loss.
        policy_weight (`float`): Weight of the policy loss, which does not run at weight 0.
        sharing ([`PrefixSharing`]): Which readers read a shared prompt once.
    """

    def __init__(
        self,
        args: OPSDConfig,
        teacher: Teacher,
        accelerator: Accelerator,
        method: MethodRun,
        policy_weight: float,
        sharing: PrefixSharing,
    ):
        self.args, self.teacher, self.accelerator, self.method = args, teacher, accelerator, method
        self.policy_weight, self.sharing = policy_weight, sharing
        self.spec = args.divergence_spec
        self.teacher_temperature = args.distillation_teacher_temperature  # None: the student's
        self.kept = KeptOutputs()
        self.sampled_token = args.distillation_mode == "sampled_token"
        self.resumed = False  # from a checkpoint, so that the teacher's weights are not the student's any more
        self._heads_checked = False

    @property
    def counted_policy_weight(self) -> float:
        """Weight of TRL's loss. In sampled-token mode it holds the whole objective, whatever the verifier's weight."""
        return 1.0 if self.sampled_token else self.policy_weight

    @property
    def distillation_weight(self) -> float:
        """Weight of the distillation at this step: that of the config, times the method's."""
        return self.args.distillation_weight * self.method.distillation_weight

    @property
    def policy_runs(self) -> bool:
        """Whether TRL's policy loss is part of the objective."""
        return self.counted_policy_weight != 0

    def request(
        self,
        model: nn.Module,
        batch: DistillationBatch,
        windows: float,
        policy: PolicyLoss,
        recorded: torch.Tensor | None = None,
    ) -> StudentRequest:
        """
        Run the teacher and say what the student's forward has to compute.

        Args:
            model (`nn.Module`): The wrapped student.
            batch ([`DistillationBatch`]): The micro-batch.
            windows (`float`): Accumulation windows in the generation batch that `batch.counts` span.
            policy (`Callable`): Gives TRL's policy loss from the student's output and, optionally, other advantages.
            recorded (`torch.Tensor` of shape `(R,)`, *optional*): Distilled tokens of which the likeliest tokens of
                both sides are wanted, counted along the rows; given to all processes or to none.
        """
        self.check_heads(model)
        self._check_readers(batch, recorded)
        if self.sampled_token:
            return self.sampled_token_request(model, batch, policy, recorded)
        return self.vocabulary_request(model, batch, windows, policy, recorded)

    def check_heads(self, model: nn.Module) -> None:
        """
        Compare the fused heads of student and teacher with their own logits, and their logits with each other's, once.
        A collective.

        Args:
            model (`nn.Module`): The student, wrapped where an engine shards its parameters.

        Raises:
            ValueError: If they differ by more than rounding explains.
        """
        if self._heads_checked:
            return
        self._heads_checked = True
        request = HeadCheckRequest(self.accelerator.device, self.args.cast_lm_head_to_fp32)
        answers = []
        for reader in (live_forward, self.teacher.teacher_forward) if self.teacher.is_local else (live_forward,):
            with self.teacher.reading(None), reader(model) as read, self.accelerator.autocast(), torch.no_grad():
                answers.append(read(**request.model_inputs(), distillation=request))
        if self.args.teacher_self_test and self.teacher.is_local:
            check_answers(*answers, equal=self.teacher.starts_as_student and not self.resumed)

    def _check_readers(self, batch: DistillationBatch, recorded: torch.Tensor | None) -> None:
        """Refuse what a teacher that is not local can't be compared in."""
        if self.teacher.is_local:
            return
        kind = f"`teacher_model_kind={self.args.teacher_model_kind!r}`"
        if recorded is not None:
            raise ValueError(f"Records of single tokens show what the teacher would rather write, which {kind} hides.")
        live = [name for name, view in batch.views.items() if view.live]
        if live and not self.sampled_token:
            raise ValueError(
                f"The student's own weights read the view {live[0]!r}, beside which {kind} goes with "
                "`distillation_mode='sampled_token'` alone. Use another `teacher_model_kind`."
            )

    def vocabulary_request(
        self,
        model: nn.Module,
        batch: DistillationBatch,
        windows: float,
        policy: PolicyLoss,
        recorded: torch.Tensor | None = None,
    ) -> StudentRequest:
        """[`request`] for a divergence over the vocabulary or a top-k set."""
        index, views, old_logps = batch.token_index, list(batch.views), batch.sampler_logps
        known, outputs = None, self._teacher_outputs(model, batch, index)
        if not self.teacher.is_local:
            label_logps, *top = outputs
            known, outputs = KnownTokens(*top, label_logps), [label_logps.new_zeros(0, len(index), 0)]
        teacher_hidden = outputs[0]
        spec, hidden_state_loss = self.method.spec(self.spec, views), self.method.hidden_state_loss(views)
        return StudentRequest(
            spec=spec,
            view_specs=[spec.of_view(name) for name in views] if spec.view_divergences else None,
            index=index,
            teacher_hidden=teacher_hidden,
            teacher_head=self.teacher.head,
            known=known,
            weights=self.weights(batch, windows).flatten(1)[:, index],
            live=[bool(view.live) for view in batch.views.values()],
            relative_positions=batch.relative_positions.flatten()[index],
            turns=batch.turns.flatten()[index],
            old_logps=None if old_logps is None else old_logps.flatten()[index],
            hidden_state_loss=hidden_state_loss,
            policy=(lambda output: self.policy_weight * policy(output)) if self.policy_runs else None,
            top=self._top_tokens(batch, teacher_hidden, spec.temperature, recorded),
            **self._shared_arguments(batch),
        )

    def sampled_token_request(
        self, model: nn.Module, batch: DistillationBatch, policy: PolicyLoss, recorded: torch.Tensor | None = None
    ) -> StudentRequest:
        """
        [`request`] for `distillation_mode="sampled_token"`: TRL's loss, with advantages of shape `(B, C)` that hold the
        teacher's gap. They are made once the student's log-probabilities are there, so that the gap is that of the
        current student. Statistics for the record are in `stats` of the request. TRL's loss applies its ratio of
        trainer to vLLM to all of its advantages, so it is not applied here.
        """
        logps, entropy, *hidden = self._scores(model, batch, recorded is not None)  # (K, B, C)
        stats = {"teacher_logps": logps, "teacher_entropy": entropy, "clipped": torch.zeros_like(logps)}

        def loss(output: FusedCausalLMOutput) -> torch.Tensor:
            stats["student_logps"], stats["student_entropy"] = output.log_probs.detach(), output.entropy.detach()
            stats["loss"] = stats["divergence"] = stats["student_logps"] - logps  # of the reverse KL, by its one sample
            return policy(output, self.sampled_advantages(batch, stats))

        return StudentRequest(
            spec=self.spec,
            index=batch.mask.new_zeros(0, dtype=torch.long),
            teacher_hidden=logps.new_zeros(0, 0, 0),
            teacher_head=self.teacher.head,
            weights=logps.new_zeros(0, 0),
            policy=loss,
            stats=stats,
            top=self._top_tokens(batch, *hidden, self.args.temperature, recorded) if hidden else None,
            **self._shared_arguments(batch),
        )

    def _top_tokens(
        self, batch: DistillationBatch, hidden: torch.Tensor, temperature: float, recorded: torch.Tensor | None
    ) -> TopTokensRequest | None:
        """Request of the likeliest tokens at some of the M distilled tokens, whose teacher's states are `(K, M, H)`."""
        if recorded is None:
            return None
        at = torch.searchsorted(batch.token_index, recorded).to(hidden.device)
        live = [bool(view.live) for view in batch.views.values()]
        of_teacher = self.teacher_temperature or temperature
        return TopTokensRequest(recorded, hidden[:, at], live, TOP_TOKENS, temperature, of_teacher)

    def _shared_arguments(self, batch: DistillationBatch) -> dict[str, Any]:
        return {
            "completion_length": batch.mask.shape[1],
            "temperature": self.args.temperature,
            "float32_head": self.args.cast_lm_head_to_fp32,
            "chunk_size": self.args.distillation_chunk_size,
        }

    def weights(self, batch: DistillationBatch, windows: float) -> torch.Tensor:
        """
        Factor on each token's loss under each view, of shape `(K, B, C)`: mask, share of the view, normaliser,
        weight of the distillation, and TRL's ratio of trainer to vLLM where it corrects for their difference.
        """
        parts = windows * self.accelerator.num_processes
        per_token = batch.counts.token_weights(batch.mask, self.args.distillation_reduction, parts)
        ratio = 1.0 if batch.importance_ratio is None else batch.importance_ratio
        return self.distillation_weight * batch.shares * per_token * ratio

    def sampled_advantages(self, batch: DistillationBatch, stats: dict[str, torch.Tensor]) -> torch.Tensor:
        """
        Advantages of shape `(B, C)` of `distillation_mode="sampled_token"`: the verifier's plus the teacher's gap
        log q(y_t) - log p(y_t), whose policy gradient is that of the reverse KL; or what the method makes of both.

        TRL divides by the number of all tokens (or rows); the gap is scaled by that number over the distilled ones, so
        that each term is a mean over its own.

        Args:
            batch ([`DistillationBatch`]): The micro-batch.
            stats (`dict[str, torch.Tensor]`): Log-probabilities of the sampled tokens and entropies, without gradient.
        """
        return self.method.advantages(self.signals(batch, stats))

    def gap_advantages(self, batch: DistillationBatch, stats: dict[str, torch.Tensor]) -> torch.Tensor:
        """Part of [`sampled_advantages`] that stands beside the verifier's as a mean over the distilled tokens (or
        rows) alone, `(B, C)`: what the factor `scale` of the signals has a say in."""
        signals = self.signals(batch, stats)
        without = replace(signals, scale=torch.zeros_like(signals.scale))
        return self.method.advantages(signals) - self.method.advantages(without)

    def method_metrics(
        self, batch: DistillationBatch, stats: dict[str, torch.Tensor]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Local sums and counts of the method's own metrics, by name; none if it has none, or no row has a view."""
        made = self.method.method.metrics
        return {} if made is None or not batch.views else made(self.signals(batch, stats))

    def signals(self, batch: DistillationBatch, stats: dict[str, torch.Tensor]) -> TokenSignals:
        """Signals of the micro-batch that a method may read: see [`TokenSignals`]."""
        return TokenSignals(
            step_context=self.method.step_context(list(batch.views)),
            **{name: stats[name] for name in TOKEN_STATS},
            old_logps=batch.sampler_logps,
            shares=batch.shares,
            mask=batch.mask,
            loss_mask=batch.loss_mask,
            advantages=self.policy_weight * batch.advantages.unsqueeze(1),
            success=batch.success.unsqueeze(1),
            group_success_rate=batch.group_success_rate.unsqueeze(1),
            turns=batch.turns,
            scale=self.distillation_weight * batch.counts.dilution(self.args.loss_type, batch.num_items),
            roles=batch.roles and replace(batch.roles, loss_type=self.args.loss_type),
        )

    # The teacher

    def _scores(
        self, model: nn.Module, batch: DistillationBatch, with_hidden: bool = False
    ) -> tuple[torch.Tensor, ...]:
        """Log-probabilities of the completion's tokens and entropies under each view's teacher, `(K, B, C)`, at its
        temperature, by default that of the sampling; 0 where a token is not distilled. With hidden states, `(K, M, H)`,
        if they are wanted."""
        index, mask = batch.token_index, batch.mask
        temperature = self.teacher_temperature or self.args.temperature
        logps, entropies, *hidden = self._teacher_outputs(model, batch, index, temperature, with_hidden)
        scores = torch.stack([logps, entropies])  # (2, K, M)
        scattered = scores.new_zeros(*scores.shape[:2], mask.numel())
        scattered[:, :, index] = scores
        return *scattered.unflatten(-1, mask.shape), *(hidden if with_hidden else [])

    def _teacher_outputs(
        self,
        model: nn.Module,
        batch: DistillationBatch,
        index: torch.Tensor,
        score_temperature: float | None = None,
        with_hidden: bool = False,
    ) -> list[torch.Tensor]:
        """
        Outputs of the teacher at the M tokens `index` of a micro-batch.

        Args:
            model (`nn.Module`): The wrapped student.
            batch ([`DistillationBatch`]): The micro-batch.
            index (`torch.Tensor` of shape `(M,)`): Tokens, counted along the rows.
            score_temperature (`float`, *optional*): See [`TeacherRequest`].
            with_hidden (`bool`): See [`TeacherRequest`].

        Returns:
            Hidden states of shape `(K, M, H)`, or log-probabilities and entropies of shape `(K, M)`, with or without
            these states. From a teacher that is not local, without `score_temperature`, what its `answer` gives, each
            with K before it.
        """
        by_view = {}
        for part in batch.teacher_batches:
            outputs = self._teacher_forward(model, part, score_temperature, with_hidden)
            by_view |= {view: [part.values_at(values, view, index) for values in outputs] for view in part.views}
        return [torch.stack(values) for values in zip(*(by_view[name] for name in batch.views), strict=True)]

    def _teacher_forward(
        self, model: nn.Module, batch: TeacherBatch, score_temperature: float | None, with_hidden: bool
    ) -> Outputs:
        """One teacher forward, or its earlier outputs if the teacher's weights have not changed since."""
        if not (batch.live or self.teacher.is_local):
            logps, *top = self.teacher.answer(batch)
            return (logps, *top) if score_temperature is None else (logps, torch.full_like(logps, torch.nan))
        kept = None if batch.live else self.kept.take(batch, self.teacher.num_updates)
        if kept is not None and (len(kept) == 3 or not with_hidden):
            return kept
        reader = live_forward(model) if batch.live else self.teacher.teacher_forward(model)
        weights = None if batch.live else self.teacher.weights_of(batch.views[0])
        with self.teacher.reading(weights), reader as teacher, self.accelerator.autocast():
            self.sharing.check(teacher, batch)
            request = TeacherRequest(
                batch,
                score_temperature,
                with_hidden,
                float32_head=self.args.cast_lm_head_to_fp32,
                for_head_alone=self.method.method.hidden_state_loss is None,
                chunk_size=self.args.distillation_chunk_size,
            )
            outputs = teacher(**request.model_inputs(), distillation=request)()
        if not batch.live:
            self.kept.keep(batch, self.teacher.num_updates, outputs)
        return outputs
