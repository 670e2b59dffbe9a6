# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
`OPSDTrainer`: overrides of `GRPOTrainer`'s hooks, in its order, each of which calls super().

    _generate                  token ids of prompts and tool results are kept
    _calculate_rewards         rows, completions and rewards meet: rollouts are captured, their views collected
    _generate_and_score_...    views are encoded; the batch gains flat keys
    evaluation_loop            the loss is a mean over the whole evaluation
    _prepare_inputs            micro-batches are re-packed; `DistillationBatch`; the teacher's forwards are planned
    _compute_loss              the objective asks the student's one forward for both losses (see model/forward.py)

The parts do the work; the trainer says when.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from peft import PeftConfig, PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, has_length
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc
from trl.trainer.utils import (
    get_config_model_id,
)

from trl_opsd.batches.distillation_batch import KEY, DistillationBatch
from trl_opsd.batches.pixels import MODALITIES
from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.config.validation import check_contexts_stay
from trl_opsd.engines.quantized import check_generation, is_quantized
from trl_opsd.kernels import TOP
from trl_opsd.model.forward import ObservedForward
from trl_opsd.model.virtual_tokens import prompt_learning_config
from trl_opsd.monitoring.alerts import SignalMonitor
from trl_opsd.monitoring.run_folder import RunFolder
from trl_opsd.monitoring.teacher_hacking import HackingMonitor
from trl_opsd.monitoring.trackers import send_alert
from trl_opsd.rollouts.view import PrivilegedSource
from trl_opsd.teacher.teacher import Teacher, live_forward
from trl_opsd.token_report.token_log import TokenLog
from trl_opsd.trainer.adapter_checks import check_adapter_options, check_resumable
from trl_opsd.trainer.distillation_setup import set_up_distillation
from trl_opsd.trainer.evaluation import Evaluation, Terms
from trl_opsd.trainer.evaluation_scores import EvaluationScores, evaluation_seed, seeded_evaluation
from trl_opsd.trainer.model_card import PAPER, add_settings, paper_of
from trl_opsd.trainer.objective import PolicyLoss
from trl_opsd.trainer.prompt_checks import check_prompts
from trl_opsd.trainer.rollout_function import CheckedRolloutFunc
from trl_opsd.trainer.rollout_trainer import RolloutTrainer
from trl_opsd.trainer.scoring import ScoreFunc, Scorer
from trl_opsd.trainer.setup_checks import (
    check_datasets,
    check_needs,
    check_steps,
    check_trained,
    no_reward,
    resolve_policy_weight,
    unique_names,
)
from trl_opsd.trainer.text_generator import TextGenerator
from trl_opsd.trainer.turn_hooks import check_turns, turns_of
from trl_opsd.trainer.view_collector import source_of


class OPSDTrainer(RolloutTrainer):
    """
    Trainer for on-policy self-distillation (OPSD), a drop-in extension of [`~trl.GRPOTrainer`].

    The student samples completions of the bare prompt. The teacher, by default the same weights as they were at the
    start, reads the same prompt with privileged context and scores every token of those completions. Training pulls the
    student's next-token distributions to the teacher's; a GRPO loss on rewards can be mixed in. The method was
    introduced in [Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language
    Models](https://huggingface.co/papers/2601.18734).

    Example:

    ```python
    from datasets import Dataset
    from trl_opsd import OPSDConfig, OPSDTrainer

    dataset = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": "What is 12 + 30?"}], "privileged_context": "12 + 30 = 42"}] * 64
    )
    trainer = OPSDTrainer("Qwen/Qwen3-0.6B", args=OPSDConfig("out", num_generations=1), train_dataset=dataset)
    trainer.train()
    ```

    Args:
        reward_funcs (`RewardFunc` or `list[RewardFunc]`, *optional*):
            As in [`~trl.GRPOTrainer`], but optional: without a reward, the run is pure distillation.
        args ([`OPSDConfig`] or [`~trl.GRPOConfig`], *optional*):
            Configuration. With a plain [`~trl.GRPOConfig`], or with `distillation_weight=0.0`, this trainer is
            [`~trl.GRPOTrainer`].
        train_dataset (`Dataset` or `IterableDataset`, *optional*):
            As in [`~trl.GRPOTrainer`], with the column `privileged_context` (see `privileged_column`): a string, chat
            messages, or `None` for a row without a teacher.
        privileged (`Callable[[list[list[Rollout]]], list[list[View]]]`, *optional*, keyword-only):
            Source of the privileged contexts, instead of the dataset column: from groups of rollouts to 0 or more views
            of each rollout, in their order. A function, an async one, or one of [`trl_opsd.privileged`].
        score_func (`Callable`, *optional*, keyword-only):
            Score of evaluations and of the pre-flight, instead of the rewards: a function as TRL's reward functions
            are. It is not trained on.

    The other arguments are those of [`~trl.GRPOTrainer`].
    """

    _tag_names = ["trl", "opsd"]
    _name = "OPSD"
    _paper = PAPER

    # Set by `__init__`
    policy_weight: float
    run_folder: RunFolder
    # Parts of a run that distils, set by `set_up_distillation`
    teacher: Teacher
    token_log: TokenLog
    text_generator: TextGenerator
    monitor: SignalMonitor
    hacking_monitor: HackingMonitor
    # Eval set of an evaluation while it runs, among several
    _eval_set = ""

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset
        | IterableDataset
        | DatasetDict
        | IterableDatasetDict
        | dict[str, Dataset | IterableDataset]
        | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: Any | None = None,
        peft_config: "PeftConfig | None" = None,
        tools: list[Callable] | None = None,
        rollout_func: RolloutFunc | None = None,
        environment_factory: EnvironmentFactory | dict[str, EnvironmentFactory] | None = None,
        *,
        privileged: PrivilegedSource | None = None,
        score_func: ScoreFunc | None = None,
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = OPSDConfig(f"{model_name.split('/')[-1]}-OPSD")
        self.is_plain_grpo = not isinstance(args, OPSDConfig) or args.distillation_weight == 0
        self.has_reward = bool(reward_funcs)
        self.score_func = score_func
        if self.is_plain_grpo:
            if score_func is not None:
                raise ValueError("`score_func` scores evaluations of runs that distil; TRL's score is a reward.")
            self._tag_names, self._name, self._paper = GRPOTrainer._tag_names, GRPOTrainer._name, GRPOTrainer._paper
        else:
            if not self.has_reward:
                reward_funcs, reward_processing_classes = [no_reward], None
            self._paper = paper_of(args)
            self.privileged = source_of(args, privileged)
            check_adapter_options(args, peft_config or prompt_learning_config(model))
            if is_quantized(model, quantization_config, args.model_init_kwargs):
                check_generation(args.use_vllm)
            rollout_func = rollout_func and CheckedRolloutFunc(rollout_func)
            self.prompts_checked = check_prompts(train_dataset, eval_dataset, environment_factory is not None)
            check_datasets(self.privileged, train_dataset, eval_dataset)
            others = {"rollout_func": rollout_func, "tools": tools, "environment_factory": environment_factory}
            self.turns = turns_of(args, others, train_dataset, eval_dataset)
        self.policy_weight = 1.0
        if isinstance(args, OPSDConfig):
            # With environments, whether there is a reward is only known once TRL has probed them
            known = self.has_reward or environment_factory is None
            if known:
                self.policy_weight = resolve_policy_weight(args, self.has_reward)
            args.resolve_num_generations(self.has_reward or not known)
            if known and not self.is_plain_grpo:
                check_needs(args, self.privileged, self.has_reward)
                check_turns(args, self.turns, self.has_reward)
        if eval_dataset is None or args.eval_strategy != "no":  # else it may be for `evaluate` alone
            check_steps(args, train_dataset)
        super().__init__(
            model, reward_funcs, args, train_dataset, eval_dataset, processing_class, reward_processing_classes,
            callbacks, optimizers, quantization_config, peft_config, tools, rollout_func, environment_factory,
        )  # fmt: skip
        if self.reward_funcs[0] is no_reward and len(self.reward_funcs) > 1:  # an environment brings its own reward
            self.reward_funcs, self.reward_func_names = self.reward_funcs[1:], self.reward_func_names[1:]
            self.reward_processing_classes = self.reward_processing_classes[1:]
            self.reward_weights = self.reward_weights[1:]
        self.has_reward = self.reward_funcs[0] is not no_reward
        if self.turns is not None:  # not as an argument, of which TRL warns users that it may change
            self.rollout_func = self.turns
        if isinstance(args, OPSDConfig):
            self.policy_weight = resolve_policy_weight(args, self.has_reward)
        self.run_folder = RunFolder({"train": train_dataset, "eval": eval_dataset}, self._adapter_settings())
        self.add_callback(self.run_folder)
        if self.is_plain_grpo:
            self.router_aux_loss_coef /= self.policy_weight  # which TRL's loss is multiplied by, balancing loss and all
        else:
            self.reward_func_names = unique_names(self.reward_func_names)
            check_needs(args, self.privileged, self.has_reward)
            set_up_distillation(self)

    # TRL's hooks, in its order

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        generation = self._generation
        inputs = super()._prepare_inputs(generation_batch)
        if self.is_plain_grpo or self._generation == generation:
            return inputs
        if not self.model.training:
            return self._repacked([inputs])[0]
        self._buffered_inputs = self._repacked(self._buffered_inputs, self.args.num_iterations)
        if self.args.log_tokens:
            self.token_log.know(self._generation, self.collected.known())
        self.probe.begin(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        if self.is_plain_grpo:
            loss = super()._compute_loss(model, inputs)
            return loss if self.policy_weight == 1.0 else self.policy_weight * loss
        batch = inputs[KEY]
        # The counts of a buffer span several optimizer steps
        windows = 1.0
        if self.model.training:
            windows = self.args.steps_per_generation / self.current_gradient_accumulation_steps
        records = self.model.training and self.token_log.wants(self.state)
        if self.evaluation is not None:
            request = self.evaluation.request(model, batch, windows, self._policy_loss(inputs))
        else:
            rows = self.token_log.rows_of(batch) if records else []
            recorded = self.token_log.tokens_of(batch, rows) if records else None
            request = self.objective.request(model, batch, windows, self._policy_loss(inputs), recorded)
        output = self._student_forward(ObservedForward(model, request), inputs)
        # On GPUs split by `device_map` the head may sit on another device than the loss
        loss = output.loss.to(inputs["completion_ids"].device)
        balancing = None if output.aux_loss is None else self._balancing_loss(output.aux_loss)
        terms = None if self.evaluation is None else self.evaluation.terms(batch, request, loss, balancing)
        stats = request.stats | output.distillation_stats
        if records:
            self._add_tokens(self.token_log, rows, inputs, stats)
        self._record(batch, {name: value for name, value in stats.items() if not name.startswith(TOP)}, terms)
        return loss if balancing is None else loss + balancing

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        arguments = dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        if self.is_plain_grpo:
            return super().evaluation_loop(*arguments)
        dataset = getattr(dataloader, "dataset", None)
        rows = len(dataset) * self.num_generations_eval if has_length(dataset) else None
        self.evaluation = Evaluation(self.objective, self.accelerator, self.args.loss_type, rows)
        seed = evaluation_seed(self.args, self.accelerator.process_index)
        threshold, prompts = self.args.success_reward_threshold, self.args.eval_teacher_prompts
        scorer = Scorer(self, self.score_func)
        self.scores = EvaluationScores(scorer, self.num_generations_eval, threshold, prompts, seed)
        self._eval_set = metric_key_prefix.removeprefix("eval_") if metric_key_prefix.startswith("eval_") else ""
        self._metrics["eval"].clear()  # `predict` leaves its own there
        try:
            with seeded_evaluation(self, seed):
                output = super().evaluation_loop(*arguments)
            name = f"{metric_key_prefix}_loss"
            output.metrics[name] = self.evaluation.loss(name, self.args.metric_for_best_model)
            output.metrics.update(self.scores.metrics(metric_key_prefix))
        finally:
            self.evaluation = None
        return output

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        check_steps(self.args, self.train_dataset)
        output = super().train(*args, **kwargs)
        check_trained(self.state.global_step)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        training = self.model.training
        if not self.is_plain_grpo and not self.has_reward:
            metrics = self._metrics["train" if training else "eval"]
            for name in [n for n in metrics if n.startswith("reward") or n == "frac_reward_zero_std"]:
                del metrics[name]  # of the stand-in
            self._logs["rewards"].clear()
        if not self.is_plain_grpo and not training and self._eval_set:
            # TRL names all eval sets alike, and each would take the place of the one before
            named = {f"{self._eval_set}_{name}": values for name, values in self._metrics["eval"].items()}
            self._metrics["eval"].clear()
            self._metrics["eval"].update(named)
        super().log(logs, start_time)
        if not self.is_plain_grpo:
            if training and self.args.log_tokens:
                self.token_log.flush(self.state.global_step)
            monitor = self.monitor if training else self.hacking_monitor
            for kind, text in monitor.observe(logs, self.state.global_step).items():
                self.run_folder.warn(text, self.state.global_step)
                send_alert(self.args.report_to, kind, text)

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        # The one hook between the engine's taking the model and the loading of a checkpoint into it
        if not self.is_plain_grpo:
            self.teacher.attach()
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def push_to_hub(
        self, commit_message: str | None = "End of training", *args: Any, private: bool | None = None, **kwargs: Any
    ) -> Any:
        if not self.is_plain_grpo:  # also without `push_to_hub` among the options, which the config checks
            check_contexts_stay(self.args, "`push_to_hub()`", private or self.args.hub_private_repo)
        given = {} if private is None else {"private": private}  # which older versions of transformers do not know
        return super().push_to_hub(commit_message, *args, **given, **kwargs)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        super().create_model_card(model_name, dataset_name, tags)
        if not self.is_plain_grpo and self.is_world_process_zero():
            add_settings(Path(self.args.output_dir) / "README.md", self.args, self.policy_weight)

    # Hooks of CrashSafeGRPOTrainer

    def public_args(self) -> GRPOConfig:
        return self.args.public() if isinstance(self.args, OPSDConfig) else self.args

    def save_own_state(self, folder: Path) -> None:
        self.teacher.save(folder)
        self.probe.save(folder)

    def load_own_state(self, folder: Path) -> None:
        check_resumable(self.teacher.core)
        self.teacher.load(folder)
        self.probe.load(folder)
        self.objective.resumed = True
        self.monitor.recall(self.state.log_history)
        self.hacking_monitor.recall(self.state.log_history)
        if self._buffered_inputs is not None:
            count = self.args.steps_per_generation
            passes, within = divmod(self._step % (count * self.args.num_iterations), count)
            uses = [self.args.num_iterations - passes - (i < within) for i in range(count)]
            self._buffered_inputs = self.planned(self._buffered_inputs, uses)

    # For the pre-flight and the records of tokens

    def loss_of(self, micro_batch: dict[str, Any]) -> torch.Tensor:
        """The loss of a micro-batch of [`micro_batches`], whose metrics are logged. A collective."""
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            return self.compute_loss(self.model, micro_batch)

    def load_weights(self, folder: Path) -> None:
        """Load the weights of a checkpoint, and of its teacher where that has some of its own. A collective."""
        self._load_from_checkpoint(str(folder))
        self.teacher.load(folder)
        self.objective.resumed = True
        self._last_loaded_step = -1  # vLLM has not seen them

    @torch.no_grad()
    def score_tokens(self, micro_batch: dict[str, Any], log: TokenLog, rows: list[int]) -> None:
        """Record rows of a micro-batch under the weights as they are. Nothing is trained or logged. A collective."""
        batch = micro_batch[KEY]
        untrained = lambda output, advantages=None: output.log_probs.sum()  # noqa: E731
        with live_forward(self.model) as model, self.compute_loss_context_manager(), self.accelerator.autocast():
            request = self.objective.request(model, batch, 1.0, untrained, log.tokens_of(batch, rows))
            output = self._student_forward(ObservedForward(model, request), micro_batch)
        self._add_tokens(log, rows, micro_batch, request.stats | output.distillation_stats)

    # Helpers

    def _adapter_settings(self) -> dict[str, Any]:
        """Entry for `run.json` of an adapter with virtual tokens: a teacher without them is not the student."""
        config = prompt_learning_config(self.accelerator.unwrap_model(self.model))
        if config is None:
            return {}
        return {"virtual_tokens": {"value": config.num_virtual_tokens, "origin": "adapter"}}

    def _policy_loss(self, inputs: dict[str, Any]) -> PolicyLoss:
        """TRL's policy loss from the output of the student's forward, within which it is called."""
        compute = super()._compute_loss

        def loss(output: Any, advantages: torch.Tensor | None = None) -> torch.Tensor:
            given = inputs if advantages is None else {**inputs, "advantages": advantages}
            return compute(lambda **_: output, given)  # what TRL's loss asks of the model is in `output`

        return loss

    def _student_forward(self, student: ObservedForward, inputs: dict[str, Any]) -> Any:
        """The student's one forward, with the model inputs that TRL builds."""
        self._get_per_token_logps_and_entropies(
            student,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs.get(name) for name in MODALITIES},
        )
        return student.output

    def _record(self, batch: DistillationBatch, stats: dict[str, torch.Tensor], terms: Terms | None) -> None:
        """Log a micro-batch, and tell the method of it, or the evaluation of the terms of its loss."""
        stats = {name: value.to(batch.mask.device) for name, value in stats.items()}
        own = self.objective.method_metrics(batch, stats) | self.teacher.metrics()
        sums, of_terms = self.recorder.token_sums(batch, stats, terms, own)
        sums |= self.method.weight_sums()
        self._log_sums(sums)
        if self.evaluation is not None:
            self.evaluation.add(of_terms)
        if self.model.training:
            self.method.record_loss(stats["loss"], batch.shares)
            self.method.record_metrics(sums)
        if self.log_completions and batch.generation == self._generation:  # no evaluation has come between
            self.recorder.fill_mean_gap(batch, stats, self._logs["extra"]["mean_gap"])

    def _add_tokens(
        self, log: TokenLog, rows: list[int], inputs: dict[str, Any], stats: dict[str, torch.Tensor]
    ) -> None:
        """Record single tokens of some rows of a micro-batch."""
        batch = inputs[KEY]
        top = {name: value for name, value in stats.items() if name.startswith(TOP)}
        stats = {name: value for name, value in stats.items() if name not in top}
        if self.objective.sampled_token:
            stats["advantage"] = self.objective.sampled_advantages(batch, stats)
        log.add(rows, inputs, stats, top)

    def _balancing_loss(self, aux_loss: torch.Tensor) -> torch.Tensor:
        """The MoE balancing loss, whole: its gradient, and what TRL's weighted loss has not counted of its value."""
        scale = self.current_gradient_accumulation_steps if self.model.training else 1.0
        missing = aux_loss - self.objective.counted_policy_weight * aux_loss.detach()
        return self.router_aux_loss_coef * missing / scale
