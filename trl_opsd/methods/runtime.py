# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A method at work in a run: its functions with the options and the state of the moment."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_opsd.losses import DivergenceSpec
from trl_opsd.losses.method_types import HiddenStateLoss
from trl_opsd.methods.base import Method, StepContext, StepSummary, TokenSignals
from trl_opsd.methods.registry import method_of, options_of
from trl_opsd.monitoring.names import PREFIX
from trl_opsd.rollouts.rollout import Rollout


STATE_FILE = "method_state.json"
_PLAIN = Method("", "", "paper")


class MethodRun(TrainerCallback):
    """
    Args:
        name (`str`, *optional*): Of the method; `None` for none, which changes nothing.
        options (`dict[str, Any]`, *optional*): `method_options`.
        accelerator (`Accelerator`): Reduces over processes what the state follows.
    """

    def __init__(self, name: str | None, options: dict[str, Any] | None, accelerator: Accelerator):
        self.method = _PLAIN if name is None else method_of(name)
        self.options = options_of(self.method, name or "", options)
        self.accelerator = accelerator
        self.state, self.step, self.progress = dict(self.method.state), 0, 0.0
        self.losses: list[tuple[float, float]] = []  # of the micro-batches of this step: sum, and tokens
        self.rollouts: list[tuple[float, int, bool]] = []
        self.logged: dict[str, list[float]] = {}

    def step_context(self, views: list[str]) -> StepContext:
        return StepContext(views, self.options, self.step, self.progress, self.state)

    def spec(self, spec: DivergenceSpec, views: list[str]) -> DivergenceSpec:
        """The loss of the config, with what the method changes."""
        method, step_context = self.method, self.step_context(views)
        made = {
            name: getattr(method, name)(step_context)
            for name in ("target", "token_weight", "auxiliary_loss")
            if getattr(method, name) is not None
        }
        return replace(spec, **made, needs_all_tokens=method.needs_all_tokens) if made else spec

    def hidden_state_loss(self, views: list[str]) -> HiddenStateLoss | None:
        made = self.method.hidden_state_loss
        return None if made is None else made(self.step_context(views))

    def metrics(self, signals: TokenSignals) -> dict[str, torch.Tensor]:
        return {} if self.method.metrics is None else self.method.metrics(signals)

    # The state

    def record_rollouts(self, rollouts: list[Rollout]) -> None:
        """The local rollouts of a generation batch."""
        self.rollouts = [(one.total, len(one.completion_ids), one.truncated) for one in rollouts]

    def record_loss(self, loss: torch.Tensor, shares: torch.Tensor) -> None:
        """Loss and share of each view at each token of a local micro-batch, `(K, B, C)`."""
        if self.method.update_state is not None:
            total = torch.where(shares > 0, shares * loss, 0.0).sum()  # elsewhere it may be infinite
            self.losses.append((float(total), float(shares.sum())))

    def record_metrics(self, values: dict[str, float]) -> None:
        """What a micro-batch logs of its tokens, the same on every process."""
        if self.method.update_state is not None:
            for name, value in values.items():
                self.logged.setdefault(name.removeprefix(PREFIX), []).append(value)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step, self.progress = state.global_step, state.global_step / max(state.max_steps, 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.method.update_state is None:
            return
        losses, rollouts = gather_object([self.losses]), gather_object(self.rollouts)
        total, tokens = (sum(pair[i] for one in losses for pair in one) for i in (0, 1))
        rewards, lengths, truncated = zip(*rollouts, strict=True)
        scored = [reward for reward in rewards if not math.isnan(reward)]
        tail = torch.tensor(lengths, dtype=torch.float64).quantile(0.95).item()
        seen = StepSummary(
            step=state.global_step,
            state=self.state,
            options=self.options,
            loss=total / max(tokens, 1.0),
            reward=sum(scored) / len(scored) if scored else math.nan,
            truncated=sum(truncated) / len(truncated),
            mean_length=sum(lengths) / len(lengths),
            tail_length=tail,
            logged={name: sum(values) / len(values) for name, values in self.logged.items()},
            progress=state.global_step / max(state.max_steps, 1),
        )
        self.state, self.losses, self.logged = self.method.update_state(seen), [], {}

    def should_sync_teacher(self) -> bool:
        """Whether a snapshot teacher is to be renewed now."""
        return self.method.should_sync_teacher is None or self.method.should_sync_teacher(self.state)

    def save(self, folder: Path, is_main: bool) -> None:
        """Write the state into a checkpoint."""
        if is_main and self.method.update_state is not None:
            (folder / STATE_FILE).write_text(json.dumps(self.state) + "\n")

    def load(self, folder: Path) -> None:
        """Take it up."""
        if self.method.update_state is not None:
            self.state = json.loads((folder / STATE_FILE).read_text())
