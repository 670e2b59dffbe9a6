# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

# /// script
# dependencies = [
#     "trl-opsd",
# ]
# ///

"""
On-policy self-distillation from a recipe, with TRL's command line; options given there win over the recipe:

accelerate launch scripts/opsd.py --config recipes/smollm2_json.yaml
"""

import argparse
import difflib
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import ScriptArguments


if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase, TrainerCallback
    from trl import DatasetMixtureConfig, ModelConfig, TrlParser

    from trl_opsd import OPSDConfig, OPSDTrainer

    Parsed = tuple["OPSDScriptArguments", OPSDConfig, ModelConfig, DatasetMixtureConfig]

# Folders that the recipes name and git does not hold, with what makes them.
MAKERS = {
    "demo/models/smollm2-135m": "python examples/smollm2.py",
    "demo/data/json": "python examples/tasks.py json",
    "demo/data/addition": "python examples/tasks.py addition",
    "demo/data/pictures": "python examples/pictures.py",
    "demo/data/calculator": "python examples/agents/calculator.py",
    "demo/data/shop": "python examples/agents/shop.py",
}


@dataclass
class OPSDScriptArguments(ScriptArguments):
    """
    Script arguments of the OPSD training script.

    Args:
        reward_model_name_or_path (`str`, *optional*):
            Reward model: a Hub id or a local directory.
        reward_funcs (`list[str]`, *optional*):
            Reward functions: names from `trl.rewards`, or dotted import paths such as `examples.tasks.correct_sum`,
            looked up in the working directory and in this repository. Without a reward the run is pure distillation.
        prompt_column (`str`, *optional*):
            Text column that becomes the user message of `prompt`, for a dataset without a `prompt` column.
        prompt_suffix (`str`, *optional*, defaults to `""`):
            Text added after it.
        tools (`list[str]`, *optional*):
            Functions that the model may call, by dotted path, such as `examples.agents.calculator.calculate`.
        environment_factory (`str`, *optional*):
            Class, by dotted path, of which each rollout gets an instance whose methods it may call, such as
            `examples.agents.shop.Shop`.
        rollout_func (`str`, *optional*):
            Function that samples the rollouts, by dotted path, such as `trl_opsd.guided.guided_rollouts`.
        chat_template (`str`, *optional*):
            Chat template instead of the model's own: a Jinja file, or the name of one that TRL ships, such as `qwen3`.
            Tools need one that TRL can parse calls of.
        preflight (`bool`, *optional*, defaults to `False`):
            Print what a training would start from, and whether it is worth it, and stop before it.
        preflight_rows (`int`, *optional*, defaults to `32`):
            Dataset rows for that.
        preflight_temperature (`float`, *optional*):
            Temperature of the answers that it scores, 0 for greedy ones. `None` means that of training.
        preflight_sources (`dict`, *optional*):
            Further sources by a name of one's own, each described as in `privileged_source`, to compare with the
            recipe's.
    """

    _VALID_DICT_FIELDS = ["preflight_sources"]

    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Reward model: a Hub id or a local directory."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Reward functions: names of `trl.rewards`, or paths such as `examples.tasks.correct_sum`."},
    )
    prompt_column: str | None = field(
        default=None, metadata={"help": "Text column that becomes the user message of `prompt`."}
    )
    prompt_suffix: str = field(default="", metadata={"help": "Text added after `prompt_column`."})
    tools: list[str] | None = field(default=None, metadata={"help": "Functions to call, by dotted path."})
    environment_factory: str | None = field(
        default=None, metadata={"help": "Class of the rollouts' environments, by dotted path."}
    )
    rollout_func: str | None = field(
        default=None, metadata={"help": "Function that samples the rollouts, by dotted path."}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "Chat template: a Jinja file, or the name of one that TRL ships."}
    )
    preflight: bool = field(default=False, metadata={"help": "Print whether training is worth it, and do not train."})
    preflight_rows: int = field(default=32, metadata={"help": "Dataset rows for that."})
    preflight_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of the answers that it scores; by default that of training."}
    )
    preflight_sources: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further sources by name, to compare with the recipe's."}
    )

    def __post_init__(self) -> None:
        given = self.preflight_sources
        if isinstance(given, str):  # from the command line
            try:
                given = json.loads(given)
            except ValueError:
                pass
        if given is not None and not isinstance(given, dict):
            raise ValueError(
                "`preflight_sources` must map names of your own to sources, such as "
                f"{{'beside': {{'column': 'solution'}}}}; got {given!r}."
            )
        self.preflight_sources = given


def make_parser(subparsers: "argparse._SubParsersAction | None" = None, prog: str | None = None) -> "TrlParser":
    from trl import DatasetMixtureConfig, ModelConfig

    from trl_opsd import OPSDConfig, OPSDParser

    dataclass_types = (OPSDScriptArguments, OPSDConfig, ModelConfig, DatasetMixtureConfig)
    if subparsers is not None:
        return subparsers.add_parser("opsd", help="Run on-policy self-distillation", dataclass_types=dataclass_types)
    return OPSDParser(dataclass_types, prog=prog)


def parse(args: Sequence[str] | None = None) -> "Parsed":
    """A mistake in a recipe is the user's to mend: it ends in one sentence that names the option, not a traceback."""
    for folder in (str(Path(__file__).parents[1]), os.getcwd()):  # for names with a dot
        if folder not in sys.path:
            sys.path.insert(0, folder)
    parser = make_parser()
    try:
        *parsed, unknown = parser.parse_args_and_config(args, return_remaining_strings=True)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    check_known(unknown, [name.name for kind in parser.dataclass_types for name in fields(kind)])
    script_args, training_args, model_args, _ = parsed
    check_folder("model_name_or_path", model_args.model_name_or_path)
    check_folder("dataset_name", script_args.dataset_name)
    if training_args.output_dir is None:
        sys.exit("error: `output_dir` is missing: say where the trained model goes.")
    return tuple(parsed)


def check_known(unknown: Sequence[str], known: Sequence[str]) -> None:
    """Stop at options that nothing reads, from the recipe or the command line: most are typing errors."""
    names = [text.removeprefix("--").split("=")[0] for text in unknown if text.startswith("--")]
    advice = []
    for name in names:
        close = difflib.get_close_matches(name, known, n=1)
        advice.append(f"`{name}`" + (f" (did you mean `{close[0]}`?)" if close else ""))
    if unknown:
        sys.exit(f"error: unknown option: {', '.join(advice or unknown)}.")


def check_folder(option: str, name: str | None) -> None:
    """A missing folder would otherwise be looked up on the Hub and be reported as a bad repository id."""
    if name is None or Path(name).expanduser().exists():
        return
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local:
        maker = MAKERS.get(Path(name).as_posix())
        advice = f"make it with `{maker}` from the repository's root" if maker else "make it or correct the path"
        sys.exit(f"error: `{option}` is the folder {name}, which does not exist: {advice}.")


def load_rewards(script_args: OPSDScriptArguments) -> list[str | Callable[..., list[float | None]]]:
    rewards: list[Any] = [import_reward(name) for name in script_args.reward_funcs or ()]
    if script_args.reward_model_name_or_path:
        rewards.insert(0, script_args.reward_model_name_or_path)
    return rewards


def import_reward(name: str) -> Callable[..., list[float | None]]:
    """`accuracy_reward` is TRL's; `examples.tasks.correct_sum` is the function of that module."""
    if name == "get_soft_overlong_punishment":
        sys.exit(f"error: `{name}` makes a reward from two lengths: name a function of your own that calls it.")
    return import_named("reward_funcs", name if "." in name else f"trl.rewards.{name}")


def import_named(option: str, name: str) -> Any:
    """What a dotted path names."""
    module, _, attribute = name.rpartition(".")
    if not module:
        sys.exit(f"error: `{option}` names {name}: it takes dotted paths, such as examples.tasks.correct_sum.")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.split(".")[0]):
            raise  # the module is there, and something that it imports is not
        sys.exit(f"error: `{option}` names {name}, but there is no module {module} to import.")
    except AttributeError:
        sys.exit(f"error: `{option}` names {name}, but {module} has no {attribute}.")


def load_tokenizer(script_args: OPSDScriptArguments, model_args: "ModelConfig") -> "PreTrainedTokenizerBase | None":
    """The model's tokenizer with another chat template. `None` without one: the trainer loads its own."""
    if script_args.chat_template is None:
        return None
    from transformers import AutoTokenizer
    from trl import chat_template_utils

    path = Path(script_args.chat_template)
    template = getattr(chat_template_utils, f"{script_args.chat_template}_chat_template", None)
    if template is None and not path.is_file():
        sys.exit(f"error: `chat_template` is {path}: neither a file nor the name of a chat template that TRL ships.")
    tokenizer = AutoTokenizer.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, padding_side="left"
    )
    tokenizer.chat_template = template or path.read_text(encoding="utf-8")
    return tokenizer


def load_data(script_args: OPSDScriptArguments, dataset_args: "DatasetMixtureConfig") -> "DatasetDict":
    from datasets import load_dataset
    from trl import get_dataset

    if dataset_args.datasets and script_args.dataset_name:
        sys.exit("error: `datasets` and `dataset_name` are both set: leave out one of them.")
    if dataset_args.datasets:
        dataset = get_dataset(dataset_args)
    elif script_args.dataset_name:
        dataset = load_dataset(
            script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming
        )
    else:
        sys.exit("error: `dataset_name` is missing: name a Hub dataset or a local folder.")

    if script_args.prompt_column is not None:
        column, suffix = script_args.prompt_column, script_args.prompt_suffix
        dataset = dataset.map(lambda row: {"prompt": [{"role": "user", "content": row[column] + suffix}]})
    return dataset


def build_trainer(
    script_args: OPSDScriptArguments,
    training_args: "OPSDConfig",
    model_args: "ModelConfig",
    dataset: "DatasetDict",
    callbacks: "list[TrainerCallback] | None" = None,
) -> "OPSDTrainer":
    from trl import get_peft_config, get_quantization_config

    from trl_opsd import OPSDTrainer

    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    evaluates = training_args.eval_strategy != "no"
    environment = script_args.environment_factory
    return OPSDTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=load_rewards(script_args) or None,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if evaluates else None,
        processing_class=load_tokenizer(script_args, model_args),
        callbacks=callbacks,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        tools=[import_named("tools", name) for name in script_args.tools or ()] or None,
        rollout_func=script_args.rollout_func and import_named("rollout_func", script_args.rollout_func),
        environment_factory=environment and import_named("environment_factory", environment),
    )


def look_ahead(trainer: "OPSDTrainer", script_args: OPSDScriptArguments) -> None:
    from trl_opsd import preflight
    from trl_opsd.privileged import build_source

    described = script_args.preflight_sources or {}
    sources = {name: build_source(spec, f"preflight_sources.{name}") for name, spec in described.items()}
    how = {"sources": sources, "temperature": script_args.preflight_temperature}
    trainer.accelerator.print(preflight(trainer, script_args.preflight_rows, **how))


def save(trainer: "OPSDTrainer", script_args: OPSDScriptArguments) -> None:
    """The model with its card, which TRL alone would only write beside a checkpoint."""
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
    training_args: "OPSDConfig",
    model_args: "ModelConfig",
    dataset_args: "DatasetMixtureConfig",
) -> None:
    dataset = load_data(script_args, dataset_args)
    trainer = build_trainer(script_args, training_args, model_args, dataset)
    if script_args.preflight:
        look_ahead(trainer, script_args)
    else:
        resume = training_args.resume_from_checkpoint
        trainer.train(resume_from_checkpoint=True if str(resume).lower() == "true" else resume)
        save(trainer, script_args)
    if hasattr(trainer, "end"):  # transformers >= 5.18: finishes trackers and the process group
        trainer.end()


if __name__ == "__main__":
    main(*parse())
