# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Checks before the first step that need the model or the data."""

from collections.abc import Callable
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig

from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.config.validation import check_policy_weight
from trl_opsd.conflicts import NO_REWARD
from trl_opsd.engines import Backend
from trl_opsd.methods.registry import method_of
from trl_opsd.privileged import DatasetColumn, Source
from trl_opsd.privileged.rows import data_rows
from trl_opsd.prompts.tokenizer import PromptTokenizer
from trl_opsd.prompts.view_encoder import ViewEncoder
from trl_opsd.teacher import Teacher


logger = get_logger(__name__)


def no_reward(prompts: list, **kwargs: Any) -> list[float]:
    """Stands in for the reward functions of a pure distillation run, as `GRPOTrainer` asks for at least one."""
    return [0.0] * len(prompts)


def resolve_policy_weight(args: OPSDConfig, has_reward: bool) -> float:
    """
    Resolve `policy_weight`, whose default depends on whether there is a reward.

    Args:
        args ([`OPSDConfig`]): Options.
        has_reward (`bool`): Whether reward functions or an environment give a reward.

    Raises:
        ValueError: If the weights leave nothing to train, or the policy term lacks its reward or its groups.
    """
    weight = args.policy_weight
    if weight is None:
        weight = 1.0 if has_reward else 0.0
    check_policy_weight(args, weight)
    if weight > 0 and not has_reward:
        raise ValueError(
            f"`policy_weight={weight}` needs a reward, and there is none. Pass `reward_funcs`, or set "
            "`policy_weight=0.0` for pure self-distillation."
        )
    return weight


def unique_names(names: list[str]) -> list[str]:
    """Names of the reward functions, numbered where several have one, as partials and closures do."""
    return [f"{name}_{names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def named_datasets(train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
    """Data sets by the name that an error gives them."""
    if isinstance(eval_dataset, dict):
        return {"train_dataset": train_dataset} | {f"eval_dataset[{k!r}]": v for k, v in eval_dataset.items()}
    return {"train_dataset": train_dataset, "eval_dataset": eval_dataset}


def check_datasets(source: Source, train_dataset: Any, eval_dataset: Any) -> None:
    """
    Let a source that reads dataset columns look for them in the data sets; other sources need none.

    Raises:
        ValueError: If a column is missing, a row holds what can't be a context, or there is no row.
    """
    for name, dataset in named_datasets(train_dataset, eval_dataset).items():
        if isinstance(dataset, Dataset) and not len(dataset):
            raise ValueError(f"`{name}` has no rows. Fill it, or leave it out.")
        if isinstance(dataset, (Dataset, IterableDataset)):
            source.check(dataset, name)


def check_needs(args: OPSDConfig, source: Source, has_reward: bool) -> None:
    """
    Refuse a method or a source in a run that lacks the rewards or the groups that it looks at.

    Args:
        args ([`OPSDConfig`]): Options.
        source ([`~trl_opsd.privileged.Source`]): Where views come from.
        has_reward (`bool`): Whether reward functions or an environment give a reward.

    Raises:
        ValueError: Naming the source, and the method that it belongs to.
    """
    method = None if args.method is None else method_of(args.method)
    if method is not None and method.reads_reward and not has_reward:
        raise ValueError(NO_REWARD.format(f"The method {args.method!r}"))
    try:
        source.check_run(has_reward, args.num_generations)
    except ValueError as error:
        own = method is not None and args.privileged_source == method.defaults.get("privileged_source")
        raise ValueError(f"{error} It is a source of the method {args.method!r}." if own else str(error)) from None


def check_steps(args: GRPOConfig, train_dataset: Any) -> None:
    """
    Find a run that would take no step, and end as if it had trained, before the model is loaded. TRL's sampler gives
    whole generation batches alone. A stream can't be counted: [`check_trained`] looks at it after the run.

    Args:
        args ([`~trl.GRPOConfig`]): Options.
        train_dataset (`Any`): Checked if it is a `Dataset`.

    Raises:
        ValueError: If the options ask for no step, or the rows do not fill a generation batch.
    """
    if args.max_steps == 0 or (args.max_steps < 0 and args.num_train_epochs <= 0):
        name = "max_steps" if args.max_steps == 0 else "num_train_epochs"
        raise ValueError(
            f"`{name}={getattr(args, name)}` asks for no training step. Raise it; to evaluate a model, pass "
            "`eval_dataset`, call `evaluate()` and leave the option out."
        )
    needed = args.generation_batch_size // args.num_generations
    if isinstance(train_dataset, Dataset) and len(train_dataset) < needed:
        raise ValueError(
            f"`train_dataset` has {len(train_dataset)} rows, and one generation batch takes {needed}, so that no step "
            f"would be taken: `generation_batch_size` is {args.generation_batch_size} "
            f"(`per_device_train_batch_size={args.per_device_train_batch_size}` on {args.world_size} process(es), "
            f"`steps_per_generation={args.steps_per_generation}`, by default `gradient_accumulation_steps`) and each "
            f"row is sampled `num_generations={args.num_generations}` times. Add rows, or lower one of the former."
        )


def check_scores(args: OPSDConfig, scored: bool, tools: bool, backend: Backend) -> None:
    """
    Check that answers of the teacher in evaluations can be written and scored.

    Args:
        args ([`OPSDConfig`]): Options.
        scored (`bool`): Whether there is a reward or a score function.
        tools (`bool`): Whether the model may call tools.
        backend ([`Backend`]): Engine of the run.

    Raises:
        ValueError: If they can't.
    """
    if not args.eval_teacher_prompts:
        return
    if not scored:
        raise ValueError(
            "`eval_teacher_prompts` scores the teacher's answers, and there is neither a reward nor a `score_func`: "
            "name one, or leave `eval_teacher_prompts` out."
        )
    if tools and backend.gathers_whole_modules:
        raise ValueError(
            "`eval_teacher_prompts` does not go with tools under ZeRO-3 or FSDP: processes call tools differently "
            "often, and all must generate together. Leave it out, or use DDP or ZeRO-2."
        )


def unreachable_stops(own: list[int], teacher: PreTrainedModel | None) -> list[int]:
    """
    Tokens that end a separate teacher's answers and none of the student's.

    Args:
        own (`list[int]`): Tokens that end the student's completions.
        teacher (`PreTrainedModel`, *optional*): The teacher's model.
    """
    config = getattr(teacher, "generation_config", None)
    ends = config.eos_token_id if config is not None else None
    ends = [ends] if isinstance(ends, int) else ends or []
    return [token for token in ends if token not in own]


def warn_of_stop_tokens(own: list[int], missing: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Warn of tokens that end a separate teacher's answers alone: what it teaches at the end of an answer is out of the
    student's reach ([2609.20511](https://huggingface.co/papers/2609.20511)).

    Args:
        own (`list[int]`): Tokens that end the student's completions.
        missing (`list[int]`): Those of [`unreachable_stops`].
        tokenizer (`PreTrainedTokenizerBase`): The student's.
    """
    names = ", ".join(tokenizer.convert_ids_to_tokens(missing))
    logger.warning(
        f"The teacher ends answers in {names}, which ends none of the student's: it would teach the student to go "
        f"on after it. Set `eos_token_id` of the student's generation config to {[*own, *missing]}."
    )


def check_trained(steps: int) -> None:
    """
    Find a run that has ended without a step, as one of a stream may.

    Args:
        steps (`int`): Optimizer steps of the run, those before a resumption too.

    Raises:
        ValueError: If there is none.
    """
    if steps == 0:
        raise ValueError(
            "The training ended without a step: `train_dataset` streams fewer rows than one generation batch takes "
            "(`generation_batch_size` / `num_generations`). Add rows, or lower `per_device_train_batch_size`, "
            "`gradient_accumulation_steps` or `steps_per_generation`."
        )


def context_length(*models: nn.Module) -> int | None:
    """Tokens that all the models can read at once, `None` where no config says."""
    lengths = [getattr(model.config.get_text_config(), "max_position_embeddings", None) for model in models]
    return min((length for length in lengths if length is not None), default=None)


def reading_length(model: nn.Module, teacher: Teacher) -> int | None:
    """Tokens that student and teacher can read at once, `None` where nothing says."""
    lengths = context_length(model, teacher.model), teacher.max_length
    return min((length for length in lengths if length is not None), default=None)


def check_model(args: OPSDConfig, model: nn.Module, teacher: Teacher) -> None:
    """
    Check the options that depend on the model.

    Raises:
        ValueError: If an option is impossible with this model.
    """
    core = model.get_base_model() if isinstance(model, PeftModel) else model
    vocabulary = core.config.get_text_config().vocab_size
    if args.distillation_topk is not None and args.distillation_topk > vocabulary:
        raise ValueError(
            f"`distillation_topk={args.distillation_topk}` is above the vocabulary of the model, {vocabulary} tokens. "
            "Lower it, or use `distillation_mode='full_logits'`."
        )
    limit = reading_length(model, teacher)
    if args.teacher_max_length is not None and limit is not None and args.teacher_max_length > limit:
        raise ValueError(
            f"`teacher_max_length={args.teacher_max_length}` is above the {limit} tokens of context that student "
            "and teacher have. Lower it, or leave it out to use their own limit."
        )


def _has_images(dataset: Any) -> bool:
    """Whether rows bring images, whose tokens only the processor can count: too slow for a whole data set, so that what
    does not fit is found at the step that samples it."""
    return isinstance(dataset, Dataset) and bool({"image", "images"} & set(dataset.column_names))


def check_rows(
    datasets: dict[str, Any],
    source: Any,
    encoder: ViewEncoder,
    args: OPSDConfig,
    tools: Any,
    tokenize: Callable[[list], list[list[int]]],
) -> None:
    """
    Check prompts and contexts of every row that can be checked before training.

    Args:
        datasets (`dict[str, Any]`): By the name that an error gives them.
        source (`PrivilegedSource`): Where the contexts are; those of a [`DatasetColumn`] are checked.
        encoder ([`ViewEncoder`]): From views to token ids.
        args ([`OPSDConfig`]): Options of the run.
        tools (`list`, *optional*): The trainer's tools.
        tokenize (`Callable`): From the student's prompts to token ids.

    Raises:
        ValueError: Naming the row.
    """
    for name, dataset in datasets.items():
        check_student_lengths(name, dataset, tokenize, args)
        if isinstance(source, DatasetColumn):
            check_dataset_characters(name, dataset, source, encoder.tokenizer)
            check_dataset_lengths(name, dataset, source, encoder, args, tools)


def check_images(teacher: Teacher, train_dataset: Any, eval_dataset: Any) -> None:
    """
    Refuse images where the teacher is sent token ids alone.

    Raises:
        ValueError: Naming the data set.
    """
    for name, dataset in named_datasets(train_dataset, eval_dataset).items():
        if not teacher.is_local and _has_images(dataset):
            raise ValueError(
                f"`{name}` has a column of images, and a teacher of the kind {teacher.name!r} is sent token ids alone. "
                "Use another `teacher_model_kind`, such as 'base' or 'checkpoint'."
            )


def check_dataset_lengths(
    name: str, dataset: Any, source: DatasetColumn, encoder: ViewEncoder, args: OPSDConfig, tools: Any
) -> None:
    """
    Find a row whose teacher prompt can't fit before training starts, not at the step that samples it.

    Only rows long enough to be in question are tokenized: a byte is the shortest thing a token stands for, and what the
    chat template and the tools add is in the first row's bare prompt too.

    Args:
        name (`str`): What to call the data set in the error.
        dataset (`Any`): Checked if it is a `Dataset`, or a dict of them.
        source ([`DatasetColumn`]): Where the contexts are.
        encoder ([`ViewEncoder`]): From views to token ids.
        args ([`OPSDConfig`]): For `teacher_overlong` and `max_completion_length`.
        tools (`list`, *optional*): The trainer's tools.

    Raises:
        ValueError: If a teacher prompt and a completion of `max_completion_length` tokens exceed its limit.
    """
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            check_dataset_lengths(f"{name}[{key!r}]", part, source, encoder, args, tools)
        return
    if _has_images(dataset):
        return
    limit = encoder.max_length
    if limit is None or args.teacher_overlong != "error" or not isinstance(dataset, Dataset) or not len(dataset):
        return
    completion = args.max_completion_length or 0
    tokenizer = encoder.tokenizer
    bytes_to_spare = limit - completion - len(tokenizer.prompt(dataset[0]["prompt"], tools, encoder.teacher_kwargs))
    for column in source.columns:
        if column not in dataset.column_names:
            continue
        for number, (prompt, context) in enumerate(data_rows(dataset, ["prompt", column], name)):
            if context is None or len(f"{prompt}{context}{source.template}".encode()) <= bytes_to_spare:
                continue
            length = encoder.length(source.view(context), prompt, tools)
            if length + completion > limit:
                raise ValueError(
                    f"Row {number} of `{name}`: the teacher's prompt with `{column}` has {length} tokens; with "
                    f"`max_completion_length={completion}` that is more than the {limit} that `teacher_max_length` or "
                    "the model's context allows. Shorten the privileged context, raise `teacher_max_length` if the "
                    "model can take it, or set `teacher_overlong='drop_view'` or `'shorten'`."
                )


def check_dataset_characters(name: str, dataset: Any, source: DatasetColumn, tokenizer: PromptTokenizer) -> None:
    """
    Find a context with a character that the tokenizer leaves out before training starts.

    Args:
        name (`str`): What to call the data set in the error.
        dataset (`Any`): Checked if it is a `Dataset`, or a dict of them.
        source ([`DatasetColumn`]): Where the contexts are.
        tokenizer ([`PromptTokenizer`]): From text to token ids.

    Raises:
        ValueError: Naming the row.
    """
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            check_dataset_characters(f"{name}[{key!r}]", part, source, tokenizer)
        return
    if not isinstance(dataset, Dataset):
        return
    for column in source.columns:
        rows = data_rows(dataset, [column], name) if column in dataset.column_names else ()
        for number, (context,) in enumerate(rows):
            try:
                tokenizer.check_characters(context)
            except ValueError as error:
                raise ValueError(f"Row {number} of `{name}`: column `{column}`: {error}") from None


def check_student_lengths(
    name: str, dataset: Any, tokenize: Callable[[list], list[list[int]]], args: GRPOConfig
) -> None:
    """
    Find a row that a colocated vLLM can't take before training starts. vLLM itself stops at the step that samples the
    row, or ends its completions early.

    Args:
        name (`str`): What to call the data set in the error.
        dataset (`Any`): Checked if it is a `Dataset`, or a dict of them.
        tokenize (`Callable`): From the student's prompts to token ids.
        args ([`~trl.GRPOConfig`]): For `vllm_max_model_length` and `max_completion_length`.

    Raises:
        ValueError: If a prompt and a completion of `max_completion_length` tokens exceed `vllm_max_model_length`.
    """
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            check_student_lengths(f"{name}[{key!r}]", part, tokenize, args)
        return
    if _has_images(dataset):
        return
    limit = args.vllm_max_model_length if args.use_vllm and args.vllm_mode == "colocate" else None
    if limit is None or not isinstance(dataset, Dataset) or not len(dataset):
        return
    completion = args.max_completion_length or 0
    bytes_to_spare = limit - completion - len(tokenize([dataset[0]["prompt"]])[0])  # see `check_dataset_lengths`
    for number, (prompt,) in enumerate(data_rows(dataset, ["prompt"], name)):
        if len(str(prompt).encode()) <= bytes_to_spare:
            continue
        length = len(tokenize([prompt])[0])
        if length + completion > limit:
            raise ValueError(
                f"Row {number} of `{name}`: the student's prompt has {length} tokens; with "
                f"`max_completion_length={completion}` that is more than `vllm_max_model_length={limit}`. Raise "
                "`vllm_max_model_length`, or shorten the prompt or `max_completion_length`. Only the student's prompt "
                "goes to vLLM: privileged contexts do not count here, `teacher_max_length` limits them."
            )
