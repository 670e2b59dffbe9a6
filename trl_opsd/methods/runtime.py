# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Runtime of a method in a training run: its functions bound to options, training progress and schedule state."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_opsd.losses import DivergenceSpec
from trl_opsd.losses.method_types import HiddenStateLoss
from trl_opsd.methods.base import Method, StepContext, StepSummary, TokenSignals
from trl_opsd.methods.registry import method_of, options_of
from trl_opsd.monitoring.metrics import Sums
from trl_opsd.monitoring.names import PREFIX
from trl_opsd.rollouts.rollout import Group, Rollout


_PLAIN = Method("")


class MethodRun(TrainerCallback):
    """
    Method bound to a training run: applies its functions, follows the steps that a schedule looks at, and saves it.

    Args:
        name (`str`, *optional*): Name of the method, or its dotted path. Without one, nothing is changed.
        options (`dict[str, Any]`, *optional*): `method_options`.
        observer (`Callable[[StepSummary], None]`, *optional*): Told of each finished step too: a privileged source.
    """

    def __init__(
        self,
        name: str | None,
        options: dict[str, Any] | None,
        observer: Callable[[StepSummary], None] | None = None,
    ):
        self.method = _PLAIN if name is None else method_of(name)
        self.options = options_of(self.method, name or "", options)
        self.observer = observer
        self.follows = self.method.update_state is not None or observer is not None
        self.step, self.progress = 0, 0.0
        self.schedule_state = dict(self.method.state)
        self.losses: list[list[float]] = []  # of the local micro-batches of this step: sum, and tokens
        self.rollouts: list[list[float]] = []  # of the generation batch: total reward, length, whether truncated
        self.logged: dict[str, list[float]] = {}  # token metrics of this step: sum, and count

    @property
    def required(self) -> tuple[str, ...]:
        """Views that a rollout must have to be distilled."""
        return self.method.required

    @property
    def micro_batch_statistics(self) -> bool:
        """Whether what it makes of a token depends on other rows of the micro-batch."""
        return self.method.micro_batch_statistics

    @property
    def distillation_weight(self) -> float:
        """Factor on `distillation_weight` at this step."""
        made = self.method.distillation_weight
        return 1.0 if made is None else made(self.step_context([]))

    def weight_sums(self) -> Sums:
        """Metric of that factor, as sum and count, where the method has one."""
        if self.method.distillation_weight is None:
            return {}
        return {f"{PREFIX}method_weight": (self.distillation_weight, 1.0)}

    def step_context(self, views: list[str]) -> StepContext:
        """Inputs of the method's functions at this step, for a batch with these views."""
        return StepContext(views, self.options, self.step, self.progress, self.schedule_state)

    def advantages(self, signals: TokenSignals) -> torch.Tensor:
        """Advantages of the sampled tokens, `(B, C)`: the method's, or the verifier's plus the teacher's gap."""
        made = self.method.advantages
        return signals.advantages + signals.scale * signals.gap if made is None else made(signals)

    def credit(self, groups: list[Group]) -> dict[int, float] | None:
        """Advantages that the method gives rollouts, by their index; `None` for TRL's own."""
        if self.method.credit is None:
            return None
        values = self.method.credit(groups, self.step_context([]))
        pairs = (pair for group, row in zip(groups, values, strict=True) for pair in zip(group, row, strict=True))
        return {rollout.index: float(value) for rollout, value in pairs}

    def spec(self, spec: DivergenceSpec, views: list[str]) -> DivergenceSpec:
        """Divergence specification of the config with the method's target, token weight and auxiliary loss."""
        method, step_context = self.method, self.step_context(views)
        made = {
            name: getattr(method, name)(step_context)
            for name in ("target", "token_weight", "auxiliary_loss")
            if getattr(method, name) is not None
        }
        return replace(spec, **made, needs_all_tokens=method.needs_all_tokens) if made else spec

    def hidden_state_loss(self, views: list[str]) -> HiddenStateLoss | None:
        """Loss of hidden states, if the method has one."""
        made = self.method.hidden_state_loss
        return None if made is None else made(self.step_context(views))

    # The state of a schedule

    def record_rollouts(self, rollouts: list[Rollout]) -> None:
        """Record total reward, length and truncation of a generation batch, of which these are the local rollouts."""
        if self.follows:
            # Of all processes, so that a checkpoint of the main one holds them
            self.rollouts = gather_object([[one.total, len(one.completion_ids), one.truncated] for one in rollouts])

    def record_loss(self, loss: torch.Tensor, shares: torch.Tensor) -> None:
        """Record loss and share of each view at each token of a local micro-batch, `(K, B, C)`."""
        if self.follows:
            total = torch.where(shares > 0, shares * loss, 0.0).sum()  # elsewhere it may be infinite
            self.losses.append([float(total), float(shares.sum())])

    def record_metrics(self, sums: Sums) -> None:
        """Record the token metrics of a micro-batch as sums and counts, the same on every process."""
        if self.follows:
            for name, (total, count) in sums.items():
                before = self.logged.get(name.removeprefix(PREFIX), (0.0, 0.0))
                self.logged[name.removeprefix(PREFIX)] = [before[0] + total, before[1] + count]

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step, self.progress = state.global_step, state.global_step / max(state.max_steps, 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self.follows:
            return
        losses = gather_object([self.losses])
        if self.rollouts:  # a checkpoint without this state lacks those of the generation batch that it was saved in
            summary = self._summary(losses, state.global_step, state.global_step / max(state.max_steps, 1))
            if self.observer is not None:
                self.observer(summary)
            if self.method.update_state is not None:
                self.schedule_state = self.method.update_state(summary)
        self.losses, self.logged = [], {}

    def _summary(self, losses: list[list[list[float]]], step: int, progress: float) -> StepSummary:
        """Statistics of a finished step from the recorded losses of every process."""
        total, tokens = (sum(pair[i] for one in losses for pair in one) for i in (0, 1))
        rewards, lengths, truncated = zip(*self.rollouts, strict=True)
        scored = [reward for reward in rewards if not math.isnan(reward)]
        return StepSummary(
            step=step,
            state=self.schedule_state,
            options=self.options,
            loss=total / max(tokens, 1.0),
            reward=sum(scored) / len(scored) if scored else math.nan,
            truncated=sum(truncated) / len(truncated),
            mean_length=sum(lengths) / len(lengths),
            tail_length=torch.tensor(lengths, dtype=torch.float64).quantile(0.95).item(),
            logged={name: total / count for name, (total, count) in self.logged.items()},
            progress=progress,
        )

    def should_sync_teacher(self) -> bool:
        """Whether a snapshot teacher is to be renewed now."""
        return self.method.should_sync_teacher is None or self.method.should_sync_teacher(self.schedule_state)

    def state(self) -> dict[str, Any]:
        """Snapshot of everything that a schedule follows; at the end of a step it is the same on every process."""
        if not self.follows:
            return {}
        return {
            "state": dict(self.schedule_state),
            "losses": copy.deepcopy(self.losses),
            "rollouts": copy.deepcopy(self.rollouts),
            "logged": copy.deepcopy(self.logged),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a snapshot of [`state`]."""
        if not state:
            return
        state = copy.deepcopy(state)
        self.schedule_state, self.losses = state["state"], state["losses"]
        self.rollouts, self.logged = state["rollouts"], state["logged"]
