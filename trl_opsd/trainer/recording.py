# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What a run writes down: metrics of tokens, the table of completions, warnings, the model card."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from trl_opsd.batches.teacher_batch import view_names
from trl_opsd.monitoring.alerts import SignalMonitor
from trl_opsd.monitoring.metrics import mean_gaps, method_metrics, token_metrics
from trl_opsd.monitoring.names import PREFIX
from trl_opsd.trainer.model_card import add_settings
from trl_opsd.trainer.objective import DistillationObjective
from trl_opsd.trainer.sampling import SamplingTrainer


class RecordingTrainer(SamplingTrainer):
    """Records of what was sampled and trained."""

    term: DistillationObjective
    monitor: SignalMonitor
    policy_weight: float

    def _log_tokens(self, inputs: dict[str, Any], stats: dict[str, torch.Tensor]) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        stats = {name: value.to(inputs["distillation_mask"].device) for name, value in stats.items()}
        shares = self.term.shares(inputs)
        values = token_metrics(self.accelerator, view_names(inputs), stats, shares)
        if values and self.policy_weight == 0 and self.args.distillation_mode != "sampled_token":
            # TRL logs it beside the policy loss; here the policy loss does not run
            values["entropy"] = values[f"{PREFIX}student_entropy"]
        if self.method.method.metrics is not None:
            signals = self.term.signals(inputs, stats, self.policy_weight)
            values |= method_metrics(self.accelerator, self.method.metrics(signals), inputs["distillation_mask"])
        if self.model.training:
            self.method.record_loss(stats["loss"], shares)
            self.method.record_metrics(values)
        for name, value in values.items():
            metrics[name].append(value)
        if self.log_completions:
            self._fill_mean_gap(inputs, stats, shares)

    def _fill_mean_gap(self, inputs: dict[str, Any], stats: dict[str, torch.Tensor], shares: torch.Tensor) -> None:
        """Put each row's mean gap into the completions table, which TRL filled when the rows were sampled."""
        if int(inputs["rollout_generation"]) != self._generation:
            return  # an evaluation has come between, and its rows are in the table now
        local = zip(inputs["rollout_index"].tolist(), mean_gaps(stats, shares).tolist(), strict=True)
        column, batch = self._logs["extra"]["mean_gap"], int(inputs["rollout_count"])
        for row, value in gather_object(list(local)):  # objects, as ranks may have left out different numbers of rows
            if len(column) - batch + row >= 0:  # TRL keeps the last rows of a long table
                column[len(column) - batch + row] = value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        training = self.model.training
        if not self._is_plain_grpo and not self._has_reward:
            metrics = self._metrics["train" if training else "eval"]
            for name in [n for n in metrics if n.startswith("reward") or n == "frac_reward_zero_std"]:
                del metrics[name]  # of the stand-in
            self._logs["rewards"].clear()
        super().log(logs, start_time)
        if not self._is_plain_grpo and training:
            self.monitor.observe(logs, self.state.global_step)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        super().create_model_card(model_name, dataset_name, tags)
        if not self._is_plain_grpo and self.is_world_process_zero():
            add_settings(Path(self.args.output_dir) / "README.md", self.args, self.policy_weight)
