# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Options of a training from a recipe: TRL's script arguments and more, and checks whose errors are one sentence."""

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

from trl_opsd.config import OPSDConfig, OPSDParser


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
            Reward functions: names from `trl.rewards`, or dotted import paths such as
            `trl_opsd.examples.tasks.correct_sum`, looked up in the working directory too. Without a reward the run is
            pure distillation.
        prompt_column (`str`, *optional*):
            Text column that becomes the user message of `prompt`, for a dataset without a `prompt` column.
        prompt_suffix (`str`, *optional*, defaults to `""`):
            Text added after it.
        tools (`list[str]`, *optional*):
            Functions that the model may call, by dotted path, such as `trl_opsd.examples.agents.calculator.calculate`.
        environment_factory (`str`, *optional*):
            Class, by dotted path, of which each rollout gets an instance whose methods it may call, such as
            `trl_opsd.examples.agents.shop.Shop`.
        rollout_func (`str`, *optional*):
            Function that samples the rollouts, by dotted path, such as `trl_opsd.privileged.guided.guided_rollouts`.
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
        metadata={
            "help": "Reward functions: names of `trl.rewards`, or paths such as `trl_opsd.examples.tasks.correct_sum`."
        },
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


def make_parser() -> TrlParser:
    """Parser of every option of a recipe."""
    return OPSDParser((OPSDScriptArguments, OPSDConfig, ModelConfig, DatasetMixtureConfig))


def find_examples() -> None:
    """Let dotted paths, such as a recipe's rewards, be looked up in the working directory, and in a checkout where its
    own recipes do, however the training is started."""
    root = Path(__file__).parents[2]
    own = [root] if (root / "pyproject.toml").exists() else []
    for folder in (*own, Path.cwd()):
        if folder.is_dir() and str(folder) not in sys.path:
            sys.path.insert(0, str(folder))


def parse(args: Sequence[str] | None = None) -> Parsed:
    """
    Options of a run from the command line and its recipe.

    A mistake in a recipe is the user's to mend: it ends in one sentence that names the option, not in a traceback.
    """
    find_examples()
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
    """Stop at a missing folder, which would otherwise be looked up on the Hub and reported as a bad repository id."""
    if name is None or Path(name).expanduser().exists():
        return
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local:
        maker = MAKERS.get(Path(name).as_posix())
        advice = f"make it with `{maker}` from the repository's root" if maker else "make it or correct the path"
        sys.exit(f"error: `{option}` is the folder {name}, which does not exist: {advice}.")
