# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Set-up of a run that distils: the parts of its trainer, once TRL has built model, processor and data."""

from typing import TYPE_CHECKING

from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin
from transformers.trainer_callback import ProgressCallback
from trl.trainer.utils import (
    add_fused_lm_head,
)

from trl_opsd.batches.pixels import ImageInputs
from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.engines.quantized import keep_unpacked_on_cpu
from trl_opsd.methods.runtime import MethodRun
from trl_opsd.model.patch import add_distillation_forward
from trl_opsd.model.virtual_tokens import mend_generation, prompt_learning_config
from trl_opsd.monitoring.alerts import SignalMonitor
from trl_opsd.monitoring.progress import Progress
from trl_opsd.monitoring.teacher_hacking import HackingMonitor
from trl_opsd.privileged.base import Run
from trl_opsd.privileged.sources.none import NoViews
from trl_opsd.prompts.tokenizer import PromptTokenizer
from trl_opsd.prompts.view_encoder import ViewEncoder
from trl_opsd.teacher import TEACHER_KINDS
from trl_opsd.teacher.teacher import TeacherUpdateCallback
from trl_opsd.token_report.token_log import TokenLog
from trl_opsd.trainer.adapter_checks import check_adapter_model
from trl_opsd.trainer.objective import DistillationObjective
from trl_opsd.trainer.prefix_sharing import PrefixSharing
from trl_opsd.trainer.recorder import Recorder
from trl_opsd.trainer.setup_checks import (
    check_images,
    check_model,
    check_rows,
    check_scores,
    reading_length,
    unreachable_stops,
    warn_of_stop_tokens,
)
from trl_opsd.trainer.text_generator import TextGenerator
from trl_opsd.trainer.token_probe import TokenProbe
from trl_opsd.trainer.turn_hooks import set_up_turns
from trl_opsd.trainer.view_collector import ViewCollector


if TYPE_CHECKING:
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer


def set_up_distillation(trainer: "OPSDTrainer") -> None:
    """
    Build the parts of a trainer, in the order in which they need each other, and check model and data with them.

    Args:
        trainer ([`OPSDTrainer`]): After `GRPOTrainer.__init__`.

    Raises:
        ValueError: If model, teacher, data or options do not go together.
    """
    args: OPSDConfig = trainer.args

    def patch_teacher(model: PreTrainedModel) -> None:
        """Give a separate teacher the forward that the student has, before it is wrapped."""
        cast = trainer.args.cast_lm_head_to_fp32
        add_fused_lm_head(model, trainer.temperature, cast_lm_head_to_fp32=cast, outputs=("log_probs", "entropy"))
        add_distillation_forward(model)
        keep_unpacked_on_cpu(model)

    own = trainer.chat_template_kwargs
    trainer.chat_template_kwargs = {**own, **(args.student_chat_template_kwargs or {})}
    core = trainer.accelerator.unwrap_model(trainer.model)
    keep_unpacked_on_cpu(core)
    check_adapter_model(core)
    if isinstance(core, PeftModel):
        mend_generation(core)
    virtual_tokens = prompt_learning_config(core) is not None
    add_distillation_forward(core.get_base_model() if isinstance(core, PeftModel) else core, virtual_tokens)
    if trainer.ref_model is not None:  # its log-probabilities are compared with the student's
        add_distillation_forward(trainer.accelerator.unwrap_model(trainer.ref_model))
    make_teacher = TEACHER_KINDS[args.teacher_model_kind]
    trainer.teacher = make_teacher(args, core, trainer.accelerator, trainer._tokenizer, patch_teacher)
    check_model(args, trainer.model, trainer.teacher)
    check_images(trainer.teacher, trainer.train_dataset, trainer.eval_dataset)
    stops = unreachable_stops(trainer.eos_token_ids, trainer.teacher.model)
    if args.teacher_self_test and stops:
        warn_of_stop_tokens(trainer.eos_token_ids, stops, trainer._tokenizer)
    scored = trainer.has_reward or trainer.score_func is not None
    check_scores(args, scored, bool(trainer.tools or trainer.environment_factories), trainer.teacher.backend)
    observer = trainer.privileged.observe_step if trainer.privileged.observes_steps else None
    trainer.method = MethodRun(args.method, args.method_options, observer)
    trainer.add_callback(trainer.method)  # before the teacher, which may ask it
    trainer.add_callback(TeacherUpdateCallback(trainer.teacher, trainer.method.should_sync_teacher))
    shares = args.teacher_share_prefix and trainer.teacher.is_local
    trainer.sharing = PrefixSharing(core, trainer.teacher.reader, shares, trainer.accelerator)
    trainer.objective = DistillationObjective(
        args, trainer.teacher, trainer.accelerator, trainer.method, trainer.policy_weight, trainer.sharing
    )
    if not trainer.teacher.backend.prepares_model_in_train:  # else before the first loss
        trainer.objective.check_heads(trainer.model)
    logs_entropy = not trainer.objective.policy_runs
    trainer.recorder = Recorder(trainer.accelerator, logs_entropy, trainer.teacher.unknown_stats)
    logs = (TokenLog(args, trainer.accelerator, trainer._tokenizer, [*trainer.eos_token_ids, *stops]) for _ in range(2))
    trainer.token_log, trainer.probe = next(logs), TokenProbe(trainer, next(logs))
    trainer.add_callback(trainer.probe)
    views = not (trainer.method.method.roles and isinstance(trainer.privileged, NoViews))
    trainer.monitor = SignalMonitor(args.divergence_spec.clip_reverses_signs, expects_views=views)
    trainer.hacking_monitor = HackingMonitor()
    # That of transformers, which prints each log as a dict; one of the user's own stays
    if any(type(one) is ProgressCallback for one in trainer.callback_handler.callbacks):
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Progress)
    is_processor = isinstance(trainer.processing_class, ProcessorMixin)
    trainer.images = ImageInputs(trainer.processing_class, trainer._prepare_input) if is_processor else None
    tokenizer = PromptTokenizer(trainer.processing_class, trainer._tokenizer, trainer.chat_template, trainer.images)
    encoder = ViewEncoder(
        tokenizer,
        student_kwargs=trainer.chat_template_kwargs,
        teacher_kwargs={**own, **(args.teacher_chat_template_kwargs or {})},
        beginning=args.teacher_generation_prompt,
        max_length=args.teacher_max_length or reading_length(trainer.model, trainer.teacher),
        overlong=args.teacher_overlong,
        own_prompts=trainer.rollout_func is not None,
    )
    trainer.collector = ViewCollector(
        args, trainer.privileged, encoder, trainer.accelerator, trainer.method.required, trainer.teacher.check_views
    )
    trainer.parts = {"method": trainer.method, "privileged_source": trainer.collector, "metrics": trainer.recorder}
    trainer.text_generator = TextGenerator(trainer, tokenizer, trainer.teacher.teacher_forward)
    ranks = trainer.accelerator.process_index, trainer.accelerator.num_processes
    run = Run(trainer._tokenizer, trainer.train_dataset, trainer.text_generator, *ranks, gather_object)
    trainer.collector.setup(set_up_turns(trainer, encoder, run))
    if trainer.environment_factories is None:  # they write the prompts
        datasets = {"train_dataset": trainer.train_dataset, "eval_dataset": trainer.eval_dataset}
        check_rows(
            datasets,
            trainer.privileged,
            encoder,
            args,
            trainer.tools,
            lambda prompts: trainer._tokenize_prompts(prompts)[0],
        )
