# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`OPSDTrainer`: overrides of `GRPOTrainer`'s hooks, each of which calls super()."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc
from trl.trainer.utils import add_fused_lm_head, get_config_model_id

from trl_opsd.batches.micro_batches import repack_micro_batches
from trl_opsd.batches.pixels import MODALITIES, ImageInputs
from trl_opsd.batches.teacher_batch import add_teacher_batches
from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.methods.runtime import MethodRun
from trl_opsd.model.forward import ObservedForward, add_distillation_forward
from trl_opsd.model.shared_prefix import can_share_prefix
from trl_opsd.monitoring.alerts import SignalMonitor
from trl_opsd.privileged import DatasetColumn, Run
from trl_opsd.prompts.tokenizer import PromptTokenizer
from trl_opsd.prompts.view_encoder import ViewEncoder
from trl_opsd.rollouts.view import PrivilegedSource
from trl_opsd.teacher import TEACHER_KINDS
from trl_opsd.teacher.teacher import TeacherUpdateCallback
from trl_opsd.trainer.model_card import PAPER, paper_of
from trl_opsd.trainer.objective import DistillationObjective
from trl_opsd.trainer.recording import RecordingTrainer
from trl_opsd.trainer.setup_checks import (
    check_dataset_characters,
    check_dataset_lengths,
    check_datasets,
    check_model,
    check_student_lengths,
    context_length,
    no_reward,
    resolve_policy_weight,
)
from trl_opsd.trainer.text_generator import TextGenerator
from trl_opsd.trainer.view_collector import ViewCollector, source_of


class OPSDTrainer(RecordingTrainer):
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

    The other arguments are those of [`~trl.GRPOTrainer`].
    """

    _tag_names = ["trl", "opsd"]
    _name = "OPSD"
    _paper = PAPER
    _planned_key = "teacher_batches"

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
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = OPSDConfig(f"{model_name.split('/')[-1]}-OPSD")
        self._is_plain_grpo = not isinstance(args, OPSDConfig) or args.distillation_weight == 0
        self._has_reward = bool(reward_funcs)
        if self._is_plain_grpo:
            self._tag_names, self._name, self._paper = GRPOTrainer._tag_names, GRPOTrainer._name, GRPOTrainer._paper
        else:
            if not self._has_reward:
                reward_funcs, reward_processing_classes = [no_reward], None
            self._paper = paper_of(args)
            self.privileged = source_of(args, privileged)
            check_datasets(self.privileged, train_dataset, eval_dataset)
        self.policy_weight = 1.0
        # With environments, whether there is a reward is only known once TRL has probed them
        if isinstance(args, OPSDConfig) and (self._has_reward or environment_factory is None):
            self.policy_weight = resolve_policy_weight(args, self._has_reward)
        super().__init__(
            model, reward_funcs, args, train_dataset, eval_dataset, processing_class, reward_processing_classes,
            callbacks, optimizers, quantization_config, peft_config, tools, rollout_func, environment_factory,
        )  # fmt: skip
        if self.reward_funcs[0] is no_reward and len(self.reward_funcs) > 1:  # an environment brings its own reward
            self.reward_funcs, self.reward_func_names = self.reward_funcs[1:], self.reward_func_names[1:]
            self.reward_processing_classes = self.reward_processing_classes[1:]
            self.reward_weights = self.reward_weights[1:]
        self._has_reward = self.reward_funcs[0] is not no_reward
        if isinstance(args, OPSDConfig):
            self.policy_weight = resolve_policy_weight(args, self._has_reward)
        if not self._is_plain_grpo:
            self._set_up_distillation(args)

    # Set-up

    def _set_up_distillation(self, args: OPSDConfig) -> None:
        own = self.chat_template_kwargs
        self.chat_template_kwargs = {**own, **(args.student_chat_template_kwargs or {})}
        core = self.accelerator.unwrap_model(self.model)
        add_distillation_forward(core.get_base_model() if isinstance(core, PeftModel) else core)
        make_teacher = TEACHER_KINDS[args.teacher_model_kind]
        self.teacher = make_teacher(args, core, self.accelerator, self._tokenizer, self._patch_teacher)
        check_model(args, self.model, self.teacher.model)
        self.method = MethodRun(args.method, args.method_options, self.accelerator)
        self.add_callback(self.method)  # before the teacher, which may ask it
        self.add_callback(TeacherUpdateCallback(self.teacher, self.method.should_sync_teacher))
        self.term = DistillationObjective(args, self.teacher, self.accelerator, self.method)
        self.monitor = SignalMonitor()
        self._may_share_prefix = args.teacher_share_prefix and can_share_prefix(self.teacher.model)
        is_processor = isinstance(self.processing_class, ProcessorMixin)
        self.images = ImageInputs(self.processing_class, self._prepare_input) if is_processor else None
        self.collector = ViewCollector(
            args,
            self.privileged,
            ViewEncoder(
                PromptTokenizer(self.processing_class, self._tokenizer, self.chat_template, self.images),
                student_kwargs=self.chat_template_kwargs,
                teacher_kwargs={**own, **(args.teacher_chat_template_kwargs or {})},
                beginning=args.teacher_generation_prompt,
                max_length=args.teacher_max_length or context_length(self.model, self.teacher.model),
                overlong=args.teacher_overlong,
            ),
            self.accelerator,
            self.method.method.required,
        )
        self.collector.setup(
            Run(
                self._tokenizer,
                self.train_dataset,
                TextGenerator(self, self.teacher.teacher_forward),
                self.accelerator.process_index,
                self.accelerator.num_processes,
                gather_object,
            )
        )
        self._sampled: dict[str, Any] = {}
        if self.environment_factories is not None:  # they write the prompts
            return
        for name, dataset in (("train_dataset", self.train_dataset), ("eval_dataset", self.eval_dataset)):
            check_student_lengths(name, dataset, lambda prompts: self._tokenize_prompts(prompts)[0], args)
            if isinstance(self.privileged, DatasetColumn):
                check_dataset_characters(name, dataset, self.privileged, self.collector.encoder.tokenizer)
                check_dataset_lengths(name, dataset, self.privileged, self.collector.encoder, args, self.tools)

    def _patch_teacher(self, model: PreTrainedModel) -> None:
        """Give a separate teacher the forward that the student has, before it is wrapped."""
        cast = self.args.cast_lm_head_to_fp32
        add_fused_lm_head(model, self.temperature, cast_lm_head_to_fp32=cast, outputs=("log_probs", "entropy"))
        add_distillation_forward(model)

    # Micro-batches

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        generation = self._generation if not self._is_plain_grpo else None
        inputs = super()._prepare_inputs(generation_batch)
        if self._is_plain_grpo or self._generation == generation:
            return inputs
        if not self.model.training:
            return self._lean([inputs])[0]
        self._buffered_inputs = self._lean(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _lean(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same rows in micro-batches that waste less, with the teacher's forwards planned."""
        policy_runs = self.policy_weight != 0 or self.args.distillation_mode == "sampled_token"
        # These are means over a micro-batch: which rows are in it changes the loss
        per_batch = self.args.loss_type == "bnpo" or self.top_entropy_quantile < 1.0 or self._entropy_bonus_enabled
        free = not self.aux_loss_enabled and not (policy_runs and per_batch)
        window = self.args.gradient_accumulation_steps if free else None
        batches = repack_micro_batches(batches, window, free and not policy_runs, self.pad_to_multiple_of)
        add_teacher_batches(batches, self.accelerator, self._may_share_prefix, self.images)
        return batches

    # Loss

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        if self._is_plain_grpo:
            loss = super()._compute_loss(model, inputs)
            return loss if self.policy_weight == 1.0 else self.policy_weight * loss
        sampled = self.args.distillation_mode == "sampled_token"
        inputs = inputs | {"verifier_advantages": inputs["advantages"]}  # TRL's loss is given others
        compute = super()._compute_loss

        def policy(output: Any) -> torch.Tensor:
            # Called inside the student's forward: TRL's loss needs of the model what `output` holds already
            return compute(lambda **_: output, inputs)

        if sampled:
            request = self.term.sampled_token_request(model, inputs, policy, self.policy_weight)
        else:
            # The counts of a buffer span several optimizer steps
            windows = 1.0
            if self.model.training:
                windows = self.args.steps_per_generation / self.current_gradient_accumulation_steps
            request = self.term.vocabulary_request(model, inputs, windows, policy, self.policy_weight)
        output = self._student_forward(ObservedForward(model, request), inputs)
        self._log_tokens(inputs, request.stats | output.distillation_stats)
        # On GPUs split by `device_map` the head may sit on another device than the loss
        loss = output.loss.to(inputs["completion_ids"].device)
        if output.aux_loss is None:
            return loss
        return loss + self._aux_loss(output.aux_loss, 1.0 if sampled else self.policy_weight)

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

    def _aux_loss(self, aux_loss: torch.Tensor, counted: float) -> torch.Tensor:
        """The MoE balancing loss. Where TRL's policy loss has counted its value, its gradient alone is missing."""
        scale = self.current_gradient_accumulation_steps if self.model.training else 1.0
        if counted:
            aux_loss = counted * (aux_loss - aux_loss.detach())
        return self.router_aux_loss_coef * aux_loss / scale

    # Restarts

    def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
        # The one hook between the engine's taking the model and the loading of a checkpoint into it
        if not self._is_plain_grpo:
            self.teacher.attach()
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def save_own_state(self, folder: Path) -> None:
        self.teacher.save(folder)
        self.collector.save(folder, self.accelerator.is_main_process)
        self.method.save(folder, self.accelerator.is_main_process)

    def load_own_state(self, folder: Path) -> None:
        self.teacher.load(folder)
        self.collector.load(folder)
        self.method.load(folder)
        self.monitor.recall(self.state.log_history)
        if self._buffered_inputs is not None:
            add_teacher_batches(self._buffered_inputs, self.accelerator, self._may_share_prefix, self.images)
