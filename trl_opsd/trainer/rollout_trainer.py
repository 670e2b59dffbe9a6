# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`RolloutTrainer`: TRL's sampling hooks, the views of the rollouts, and their packing into micro-batches."""

from collections.abc import Sequence
from typing import Any

import torch
from trl.trainer.utils import (
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from trl_opsd.batches.distillation_batch import KEY, DistillationBatch, with_flat_keys
from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.batches.micro_batches import repack_micro_batches
from trl_opsd.batches.pixels import ImageInputs
from trl_opsd.batches.teacher_plan import plan_teacher_batches
from trl_opsd.checkpoints.trainer import CrashSafeGRPOTrainer
from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.methods.runtime import MethodRun
from trl_opsd.monitoring.metrics import Sums
from trl_opsd.privileged.base import Source
from trl_opsd.rollouts.capture import Sampled, build_rollouts
from trl_opsd.rollouts.rollout import Rollout
from trl_opsd.rollouts.view import shown_context
from trl_opsd.trainer.evaluation import Evaluation
from trl_opsd.trainer.evaluation_scores import EvaluationScores
from trl_opsd.trainer.objective import DistillationObjective
from trl_opsd.trainer.prefix_sharing import PrefixSharing
from trl_opsd.trainer.prompt_checks import check_sampled_prompts
from trl_opsd.trainer.recorder import Recorder
from trl_opsd.trainer.rehearsal import generate_from
from trl_opsd.trainer.turn_hooks import credited, scored_rewards, turn_sums
from trl_opsd.trainer.view_collector import CollectedViews, ViewCollector, check_alignment
from trl_opsd.turns.sampler import Turns


class RolloutTrainer(CrashSafeGRPOTrainer):
    """
    Sampling half of [`~trl_opsd.OPSDTrainer`]: generation batches with views, and micro-batches of them. The loss is
    the subclass's, which also sets what is declared here.
    """

    is_plain_grpo: bool
    has_reward: bool
    prompts_checked: bool  # of all rows, before training
    turns: Turns | None = None
    # Parts of a run that distils
    privileged: Source
    method: MethodRun
    images: ImageInputs | None
    collector: ViewCollector
    sharing: PrefixSharing
    objective: DistillationObjective
    recorder: Recorder
    # Of an evaluation while it runs
    evaluation: Evaluation | None = None
    scores: EvaluationScores
    # Of the last generation batch: between the hooks that sample it, and for the pre-flight
    _sampled: Sampled
    collected: CollectedViews

    # TRL's hooks, in its order

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if not self.is_plain_grpo:
            self._signature_columns = list(dict.fromkeys([*self._signature_columns, *self.privileged.columns]))
            if self.turns is not None:
                self._signature_columns = list(dict.fromkeys([*self._signature_columns, *self.turns.columns]))

    def _generate(self, prompts: list) -> tuple:
        sampled = super()._generate(prompts)
        if self.is_plain_grpo:
            return sampled
        self._sampled = Sampled(prompt_ids=sampled[0], tool_mask=sampled[2])
        images = sampled[6]
        # TRL says `None` of a row without images, which the processors that it calls next refuse
        return (*sampled[:6], images and [of_row or [] for of_row in images], *sampled[7:])

    def _calculate_rewards(
        self, inputs: list[dict], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        # The one hook where rows, prompts (after an environment's reset), completions, ids and rewards meet
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if not self.is_plain_grpo:
            group_size = self.num_generations if self.model.training else self.num_generations_eval
            given = rewards, inputs, prompts, completions, completion_ids_list, group_size

            def capture() -> list[Rollout]:
                rollouts = self._captured(*given)
                return rollouts if self.turns is None else self.turns.dressed(rollouts)

            self.collected = self.collector.collect(capture, group_size, self.state.global_step)
            if self.log_completions:  # must be there before TRL flushes the table's extra columns
                self._log_collected(self.collected)
            if self.turns is not None:
                rewards = scored_rewards(rewards, self.collected.rollouts, self.accelerator)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
        if not self.is_plain_grpo and not self.prompts_checked:
            with raise_on_all_ranks(self.accelerator, "the prompts", self.state.global_step):
                check_sampled_prompts(inputs, self.environment_factories is not None)
        if self.turns is not None:
            self.turns.begin(inputs)
        output = super()._generate_and_score_completions(inputs)
        if self.is_plain_grpo:
            return output
        tools, rows = self.tools_of_rows(), len(inputs)
        if self.evaluation is not None:
            rows = self.evaluation.take_rows(rows)
            output = self.evaluation.masked(output, rows)
        collected = self.collected.first(rows)
        if self.model.training:
            self.method.record_rollouts(collected.rollouts)
        check_alignment(collected.rollouts, output["completion_ids"])
        encoded = self.collector.encode(collected, tools)
        if self.evaluation is not None:
            self.scores.add(collected.rollouts, encoded, rows, self.evaluation.seen)
        off = collected.without_policy(encoded)
        self._log_sums(*self.collector.metrics(collected, encoded, off, rows))
        advantages = output["advantages"]
        if self.turns is not None:
            self._log_sums(turn_sums(self.turns, collected.rollouts, self.accelerator))
        if self.model.training:
            advantages = credited(advantages, self)
        advantages = advantages.masked_fill(torch.tensor(off, device=self.accelerator.device), 0.0)
        return self.with_views({**output, "advantages": advantages}, encoded)

    # For diagnostics and turns

    def sample(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Sample a generation batch as in training. A collective. Its rollouts and views are then in `collected`.

        Args:
            rows (`list[dict]`): The rows of this process, each as often as it is sampled, groups side by side.

        Returns:
            `dict[str, Any]`: The generation batch.
        """
        return self._generate_and_score_completions(rows)

    def with_views(self, batch: dict[str, Any], encoded: dict[str, EncodedView]) -> dict[str, Any]:
        """
        A generation batch with these views in place of its own. A collective.

        Args:
            batch (`dict`): From [`sample`], of the rollouts that are in `collected`.
            encoded (`dict[str, EncodedView]`): Views by name, from [`ViewCollector.encode`].
        """
        collected, device = self.collected, self.accelerator.device
        self._generation += 1
        known = {
            "generation": torch.tensor(self._generation),
            "generation_size": torch.tensor(len(collected.rollouts) * self.accelerator.num_processes),
            "index": torch.tensor([one.index for one in collected.rollouts], device=device),
            "success": torch.tensor([one.success for one in collected.rollouts], dtype=torch.float32, device=device),
            "group_success_rate": torch.tensor(collected.group_success_rates, dtype=torch.float32, device=device),
        }
        padding = batch["completion_ids"].shape[1], self._tokenizer.pad_token_id, self.pad_to_multiple_of
        views = [view.tensors(name, *padding, device) for name, view in encoded.items()]
        roles = None if self.turns is None else [one.role for one in collected.rollouts]
        return with_flat_keys(batch, views, self.args.num_loss_tokens_to_skip, self.accelerator, known, roles)

    def micro_batches(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """The micro-batches of a generation batch, in its order, as they are trained on. A collective."""
        parts = split_tensor_dict(split_pixel_values_by_grid(batch), self.args.steps_per_generation)
        return self._repacked([unsplit_pixel_values_by_grid(part) for part in parts])

    def planned(self, batches: list[dict[str, Any]], uses: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Micro-batches again of what [`flat_batch`] made of them, with the teacher's forwards planned for so many
        passes over each, by default one. A collective."""
        batches = [DistillationBatch.take(batch) for batch in batches]
        self._plan(batches, [1] * len(batches) if uses is None else list(uses))
        return batches

    def flat_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        own = batch[KEY].flat()
        return {name: value for name, value in batch.items() if name != KEY} | own

    def tools_of_rows(self) -> list[Any]:
        """The tools of each rollout in `collected`."""
        if self.environment_factories is None:
            return [self.tools] * len(self.collected.rollouts)
        return [self._env_tools[name] for name in self._batch_environments]

    def rewards_of(
        self, rows: list[dict], prompts: list, completions: list, completion_ids: list[list[int]]
    ) -> torch.Tensor:
        """Rewards of completions that are no rollouts, of all processes, as TRL's hook returns them. A collective."""
        rewards = super()._calculate_rewards(rows, prompts, completions, completion_ids)
        self._pending_extra_logs.clear()  # the next batch of rollouts would take them for its own
        self._pending_metrics.clear()
        return rewards

    def first_turns(
        self, rows: list[dict], prompts: list, prompt_ids: list[list[int]], ids: list[list[int]], group_size: int
    ) -> list[Rollout]:
        """First turns of the units of this process as rollouts with their rewards. A collective."""
        seen = self.state.num_input_tokens_seen  # is counted with the rows
        ids, _, completions = generate_from(self, rows, prompts, prompt_ids, lambda _: ids)
        self.state.num_input_tokens_seen = seen
        rewards = super()._calculate_rewards(rows, prompts, completions, ids)
        self._sampled = Sampled(prompt_ids=prompt_ids, tool_mask=None)
        with raise_on_all_ranks(self.accelerator, "the rewards of first turns", self.state.global_step):
            rollouts = self._captured(rewards, rows, prompts, completions, ids, group_size)
        self._pending_extra_logs.clear()  # the rewards of the whole batch log them
        self._pending_metrics.clear()
        return rollouts

    # Helpers

    def _captured(
        self,
        rewards: torch.Tensor,
        rows: list[dict],
        prompts: list,
        completions: list,
        ids: list[list[int]],
        group_size: int,
    ) -> list[Rollout]:
        """The rollouts of this process. `rewards` are those of all processes."""
        count = len(prompts)
        first = self.accelerator.process_index * count
        return build_rollouts(
            self._sampled,
            rows,
            prompts,
            completions,
            ids,
            rewards[first : first + count].tolist(),
            self._pending_extra_logs,
            reward_names=self.reward_func_names if self.has_reward else [],
            reward_weights=self.reward_weights.tolist(),
            success_threshold=self.args.success_reward_threshold,
            group_size=group_size,
            first=first,
            step=self.state.global_step,
            training=self.model.training,
            end_token_ids={*self.eos_token_ids, self._tokenizer.pad_token_id},
            environments=self.environments,
        )

    def _log_collected(self, collected: CollectedViews) -> None:
        """Columns of the completions table."""
        if self.args.log_privileged_context:
            self._log_completion_extra("privileged_context", [shown_context(views) for views in collected.views])
        if self.turns is not None:
            self._log_completion_extra("role", [one.role for one in collected.rollouts])
        self._log_completion_extra("leak", [leak.shown for leak in collected.leaks])
        self._log_completion_extra("mean_gap", [torch.nan] * len(collected.rollouts))

    def _log_sums(self, sums: Sums, largest: dict[str, float] | None = None) -> None:
        """Put the means, and the largest values, since the last log into TRL's lists."""
        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        self.recorder.add(mode, sums, metrics)
        for name, value in (largest or {}).items():
            metrics[name] = [max([*metrics[name], value])]

    def _repacked(self, batches: list[dict[str, Any]], uses: int = 1) -> list[dict[str, Any]]:
        """The same rows in micro-batches that waste less, with the teacher's forwards planned for so many passes."""
        policy = self.objective.policy_runs
        # Statistics of a micro-batch: which rows are in it changes the loss
        of_policy = self.args.loss_type == "bnpo" or self.top_entropy_quantile < 1.0 or self._entropy_bonus_enabled
        kept = self.aux_loss_enabled or self.method.micro_batch_statistics or (policy and of_policy)
        window = None if kept else self.args.gradient_accumulation_steps
        drop_idle = not self.aux_loss_enabled and not policy
        batches = repack_micro_batches(batches, window, drop_idle, self.pad_to_multiple_of)
        self._plan(batches, [uses] * len(batches))
        return batches

    def _plan(self, batches: list[dict[str, Any]], uses: list[int]) -> None:
        """Plan the teacher's forwards of micro-batches, and let a teacher on a server begin. A collective."""
        weights_of = self.teacher.weights_of
        plan_teacher_batches(batches, self.accelerator, self.sharing.allowed, self.images, uses, weights_of)
        self.teacher.prefetch([one for batch in batches for one in batch[KEY].teacher_batches])
