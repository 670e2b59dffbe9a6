# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""From TRL's generation batch to one with views: the hooks around sampling and rewards."""

import math
from typing import Any

import torch

from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.checkpoints.trainer import CrashSafeGRPOTrainer
from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.methods.runtime import MethodRun
from trl_opsd.monitoring.metrics import generation_metrics
from trl_opsd.privileged import Source
from trl_opsd.rollouts.message_images import with_empty_lists
from trl_opsd.rollouts.rollout import Rollout, rows_of_columns, total_reward, turns_of
from trl_opsd.rollouts.view import shown_context
from trl_opsd.trainer.objective import batch_keys
from trl_opsd.trainer.view_collector import ViewCollector, alignment_error


class SamplingTrainer(CrashSafeGRPOTrainer):
    """Rollouts as TRL samples and scores them, their views, and the keys that these add to the batch."""

    privileged: Source
    collector: ViewCollector
    method: MethodRun
    _has_reward: bool
    _sampled: dict[str, Any]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if not self._is_plain_grpo:
            self._signature_columns = list(dict.fromkeys([*self._signature_columns, *self.privileged.columns]))

    def _generate(self, prompts: list) -> tuple:
        sampled = super()._generate(prompts)
        if not self._is_plain_grpo:
            self._sampled = {"prompt_ids": sampled[0], "tool_mask": sampled[2]}
            sampled = (*sampled[:6], with_empty_lists(sampled[6]), *sampled[7:])
        return sampled

    def _calculate_rewards(
        self, inputs: list[dict], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        # The one hook where rows, prompts (after an environment's reset), completions, ids and rewards meet
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._is_plain_grpo:
            return rewards
        with raise_on_all_ranks(self.accelerator, "the rewards", self.state.global_step):
            extra = rows_of_columns(self._pending_extra_logs, len(prompts))
        rollouts = self._captured(rewards, inputs, prompts, completions, completion_ids_list, extra)
        self.collector.collect(rollouts, self.num_generations if self.model.training else self.num_generations_eval)
        if self.log_completions:  # must be there before TRL flushes the table's extra columns
            if self.args.log_privileged_context:
                shown = [shown_context(views) for views in self.collector.views]
                self._log_completion_extra("privileged_context", shown)
            self._log_completion_extra("leak", [leak.shown for leak in self.collector.leaks])
            self._log_completion_extra("mean_gap", [torch.nan] * len(rollouts))
        return rewards

    def _captured(
        self,
        rewards: torch.Tensor,
        rows: list,
        prompts: list,
        completions: list,
        completion_ids: list,
        extra: list[dict[str, Any]],
    ) -> list[Rollout]:
        """The local rollouts, from what TRL hands over. `rewards` are those of all processes."""
        count = len(prompts)
        first = self.accelerator.process_index * count
        names = self.reward_func_names if self._has_reward else []
        masks = self._sampled["tool_mask"] or [None] * count
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        rollouts = []
        for i, values in enumerate(rewards[first : first + count].tolist()):
            total = total_reward(values, self.reward_weights.tolist()) if names else math.nan
            rollouts.append(
                Rollout(
                    row=rows[i],
                    prompt=prompts[i],
                    completion=completions[i],
                    prompt_ids=list(self._sampled["prompt_ids"][i]),
                    completion_ids=list(completion_ids[i]),
                    turns=turns_of(completions[i], completion_ids[i], masks[i]),
                    rewards=dict(zip(names, values, strict=False)),
                    total=total,
                    success=total >= self.args.success_reward_threshold,
                    extra=extra[i],
                    group=(first + i) // (self.num_generations if self.model.training else self.num_generations_eval),
                    index=first + i,
                    step=self.state.global_step,
                    truncated=completion_ids[i][-1] not in ends,
                    training=self.model.training,
                    environment=None if self.environments is None else self.environments[i],
                )
            )
        return rollouts

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self._is_plain_grpo:
            return output
        rollouts = self.collector.rollouts
        if error := alignment_error(rollouts, output["completion_ids"]):
            raise RuntimeError(error)
        if self.model.training:
            self.method.record_rollouts(rollouts)
        encoded = self.collector.encode(self._tools_of_rows(len(rollouts)))
        mode = "train" if self.model.training else "eval"
        completions = [rollout.completion_ids for rollout in rollouts]
        without_policy = self.collector.without_policy(encoded)
        skipped, leaks = self.collector.asker.skipped, self.collector.leaks
        metrics = generation_metrics(self.accelerator, encoded, completions, skipped, sum(without_policy), leaks)
        for name, value in (metrics | self.collector.count_metrics()).items():
            self._metrics[mode][name].append(value)
        off = torch.tensor(without_policy, device=self.accelerator.device)
        output = {**output, "advantages": output["advantages"].masked_fill(off, 0.0)}
        return self._with_views(output, encoded)

    def _with_views(self, output: dict[str, Any], encoded: dict[str, EncodedView]) -> dict[str, Any]:
        """The generation batch with the keys of its encoded views."""
        rollouts, width = self.collector.rollouts, output["completion_ids"].shape[1]
        padding = self._tokenizer.pad_token_id, self.pad_to_multiple_of
        output = dict(output)
        for name, view in encoded.items():
            output |= view.tensors(name, width, *padding, self.accelerator.device)
        output |= batch_keys(output, self.args.num_loss_tokens_to_skip, self.accelerator)
        self._generation += 1
        output["rollout_generation"] = torch.tensor(self._generation)
        output["rollout_count"] = torch.tensor(len(rollouts) * self.accelerator.num_processes)
        output["rollout_index"] = torch.tensor([r.index for r in rollouts], device=self.accelerator.device)
        output |= self.collector.successes(self.accelerator.device)
        return output

    def _tools_of_rows(self, count: int) -> list[Any]:
        if self.environment_factories is None:
            return [self.tools] * count
        return [self._env_tools[name] for name in self._batch_environments]
