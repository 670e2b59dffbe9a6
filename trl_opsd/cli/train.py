# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Training from a recipe, with TRL's command line; options given there win over the recipe:

accelerate launch -m trl_opsd.cli.train --config recipes/smollm2_json.yaml

`trl-opsd train` and, from a checkout, scripts/opsd.py do the same.
"""

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    chat_template_utils,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from trl_opsd.cli.arguments import OPSDScriptArguments, parse
from trl_opsd.cli.errors import UserError, told
from trl_opsd.cli.hub_check import check_hub
from trl_opsd.cli.prefix import model_with_prefix
from trl_opsd.cli.quiet import keep_quiet
from trl_opsd.config import OPSDConfig
from trl_opsd.diagnostics import AlignmentReport, PreflightReport, alignment, preflight
from trl_opsd.phases.collect import check_free, collect
from trl_opsd.privileged import build_source
from trl_opsd.privileged.imports import check_reward, check_takes, imported
from trl_opsd.trainer import OPSDTrainer


# Errors of what a recipe names, until the training begins
MISTAKES = (ValueError, OSError, ImportError)


def load_rewards(script_args: OPSDScriptArguments) -> list[str | Callable[..., list[float | None]]]:
    """Reward model and reward functions that the recipe names."""
    rewards: list[Any] = [import_reward(name) for name in script_args.reward_funcs or ()]
    if script_args.reward_model_name_or_path:
        rewards.insert(0, script_args.reward_model_name_or_path)
    return rewards


def import_reward(name: str, option: str = "reward_funcs") -> Callable[..., list[float | None]]:
    """Reward function by its name: `accuracy_reward` is TRL's; `tasks.correct_sum` is that of the module `tasks`."""
    if name == "get_soft_overlong_punishment":
        raise UserError(f"`{name}` makes a reward from two lengths: name a function of your own that calls it.")
    path = name if "." in name else f"trl.rewards.{name}"
    return import_named(option, path, lambda found: check_reward(found, path, option))


def import_environment(name: str) -> type:
    """Environment class by its dotted path."""

    def check(found: Any) -> None:
        if not isinstance(found, type) or not callable(getattr(found, "reset", None)):
            raise ValueError(f"`environment_factory`: {name} is no class with a method `reset`.")

    return import_named("environment_factory", name, check)


def import_rollout_func(name: str) -> Callable[..., dict[str, Any]]:
    """Function that samples rollouts, by its dotted path."""
    return import_named("rollout_func", name, lambda found: check_takes(found, name, "rollout_func", 2))


def import_tool(name: str) -> Callable[..., Any]:
    """Function that the model may call, by its dotted path."""

    def check(found: Any) -> None:
        if not inspect.isroutine(found):
            raise ValueError(f"`tools`: {name} is {found!r}, and no function.")

    return import_named("tools", name, check)


def import_named(option: str, name: str, check: Callable[[Any], None]) -> Any:
    """Object that a dotted path names, if it passes a check of what it is."""
    if "." not in name:
        raise UserError(f"`{option}` names {name}: it takes dotted paths, such as agents.calculator.calculate.")
    try:
        found = imported(name, option)
        check(found)
    except ValueError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and not name.startswith(f"{missing.name}."):
            raise missing from None  # the module is there, and something that it imports is not
        raise UserError(str(error)) from error
    return found


def load_tokenizer(script_args: OPSDScriptArguments, model_args: ModelConfig) -> PreTrainedTokenizerBase | None:
    """Tokenizer with the recipe's chat template; `None` without one, as the trainer loads its own."""
    if script_args.chat_template is None:
        return None
    path = Path(script_args.chat_template)
    template = getattr(chat_template_utils, f"{script_args.chat_template}_chat_template", None)
    if template is None and not path.is_file():
        raise UserError(f"`chat_template` is {path}: neither a file nor the name of a chat template that TRL ships.")
    tokenizer = AutoTokenizer.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, padding_side="left"
    )
    tokenizer.chat_template = template or path.read_text(encoding="utf-8")
    return tokenizer


def load_data(script_args: OPSDScriptArguments, dataset_args: DatasetMixtureConfig) -> DatasetDict:
    """Dataset or mixture of the recipe, with `prompt_column` made into prompts."""
    if dataset_args.datasets and script_args.dataset_name:
        raise UserError("`datasets` and `dataset_name` are both set: leave out one of them.")
    if dataset_args.datasets:
        dataset = get_dataset(dataset_args)
    elif script_args.dataset_name:
        dataset = load_dataset(
            script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming
        )
    else:
        raise UserError("`dataset_name` is missing: name a Hub dataset or a local folder.")

    if script_args.prompt_column is not None:
        column, suffix = script_args.prompt_column, script_args.prompt_suffix
        dataset = dataset.map(lambda row: {"prompt": [{"role": "user", "content": row[column] + suffix}]})
    return dataset


def build_trainer(
    script_args: OPSDScriptArguments,
    training_args: OPSDConfig,
    model_args: ModelConfig,
    dataset: DatasetDict,
    callbacks: list[TrainerCallback] | None = None,
) -> OPSDTrainer:
    """Trainer with everything that the recipe names."""
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    prefix = script_args.prefix_tokens is not None
    evaluates = training_args.eval_strategy != "no"
    environment = script_args.environment_factory
    return OPSDTrainer(
        model=model_with_prefix(script_args, training_args, model_args) if prefix else model_args.model_name_or_path,
        reward_funcs=load_rewards(script_args) or None,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if evaluates else None,
        processing_class=load_tokenizer(script_args, model_args),
        callbacks=callbacks,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        tools=[import_tool(name) for name in script_args.tools or ()] or None,
        rollout_func=script_args.rollout_func and import_rollout_func(script_args.rollout_func),
        environment_factory=environment and import_environment(environment),
        score_func=script_args.score_func and import_reward(script_args.score_func, "score_func"),
    )


def look_ahead(trainer: OPSDTrainer, script_args: OPSDScriptArguments) -> None:
    """Print the report of the pre-flight or of the alignment, of the recipe's source and of `preflight_sources`, in
    words or as JSON."""
    described = script_args.preflight_sources or {}
    sources = {name: build_source(spec, f"preflight_sources.{name}") for name, spec in described.items()}
    report: PreflightReport | AlignmentReport
    if script_args.align:
        sizes = {name: getattr(script_args, f"align_{name}") for name in ("nodes", "candidates", "samples")}
        report = alignment(trainer, script_args.align_rows, sources=sources, **sizes)
    else:
        how = {"sources": sources, "temperature": script_args.preflight_temperature}
        report = preflight(trainer, script_args.preflight_rows, **how)
    as_json = script_args.align_json if script_args.align else script_args.preflight_json
    trainer.accelerator.print(json.dumps(report.as_dict(), indent=2) if as_json else report)


def gather(trainer: OPSDTrainer, script_args: OPSDScriptArguments) -> None:
    """Sample rows for supervised fine-tuning, and write them into `output_dir`."""
    found = collect(
        trainer,
        script_args.collect_rows,
        layouts=script_args.collect_layout,
        keep=script_args.collect_keep,
        view=script_args.collect_view,
    )
    if trainer.is_world_process_zero():
        folder = found.write(trainer.args.output_dir)
        print(f"{found}\nThe rows are in {folder}. Next: trl sft --dataset_name {trainer.args.output_dir}")


def save(trainer: OPSDTrainer, script_args: OPSDScriptArguments) -> None:
    """Save the model with its card, which TRL alone would only write beside a checkpoint."""
    output_dir = Path(trainer.args.output_dir)
    trainer.save_model(str(output_dir))
    is_local = script_args.dataset_name is not None and Path(script_args.dataset_name).exists()
    dataset_name = None if is_local else script_args.dataset_name  # a card links to the Hub
    trainer.create_model_card(model_name=output_dir.name, dataset_name=dataset_name)
    trainer.accelerator.print(f"The model is in {output_dir}.")
    if trainer.args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
        trainer.accelerator.print(f"It was pushed to {trainer.hub_model_id}.")


def main(
    script_args: OPSDScriptArguments,
    training_args: OPSDConfig,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
) -> None:
    """Train, or only look ahead under `preflight` or `align`, or sample rows under `collect`."""
    with told(expected=MISTAKES):
        if script_args.collect:
            check_free(training_args.output_dir)
            training_args.push_to_hub = False  # the rows hold contexts
        dataset = load_data(script_args, dataset_args)
        trainer = build_trainer(script_args, training_args, model_args, dataset)
    if script_args.preflight or script_args.align:
        look_ahead(trainer, script_args)
    elif script_args.collect:
        with told(expected=(ValueError,)):
            gather(trainer, script_args)
    else:
        resume = training_args.resume_from_checkpoint
        trainer.train(resume_from_checkpoint=True if str(resume).lower() == "true" else resume)
        save(trainer, script_args)
    if hasattr(trainer, "end"):  # transformers >= 5.18: finishes trackers and the process group
        trainer.end()


def run(args: Sequence[str] | None = None) -> None:
    """Train from a command line."""
    keep_quiet()
    with told():
        parsed = parse(args)
        script_args, training_args, model_args, _ = parsed
        check_hub(vars(script_args) | vars(training_args) | vars(model_args))
    main(*parsed)


if __name__ == "__main__":
    run()
