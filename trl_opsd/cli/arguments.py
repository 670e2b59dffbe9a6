# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Options of a training from a recipe: TRL's script arguments and more, and checks whose errors are one sentence."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

from trl_opsd.cli.errors import UserError
from trl_opsd.cli.recipe_check import check, spelled
from trl_opsd.config import OPSDConfig, OPSDParser
from trl_opsd.options import near


Parsed = tuple["OPSDScriptArguments", OPSDConfig, ModelConfig, DatasetMixtureConfig]


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
        score_func (`str`, *optional*):
            Score of evaluations and of the pre-flight instead of the rewards, named as these are. It is not trained
            on.
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
        prefix_tokens (`int`, *optional*):
            Virtual tokens of a prefix (PEFT's CARTRIDGE), keys and values before every prompt, which alone are trained.
        prefix_text (`str`, *optional*):
            Text file whose first tokens, as a system message, the prefix starts from. `None` means a random start.
        prefix_frozen (`int`, *optional*):
            First virtual tokens that are not trained. `None` means 1, the attention sink.
        preflight (`bool`, *optional*, defaults to `False`):
            Print what a training would start from, and whether it is worth it, and stop before it.
        preflight_rows (`int`, *optional*, defaults to `32`):
            Dataset rows for that.
        preflight_json (`bool`, *optional*, defaults to `False`):
            Print it as JSON, with the whole texts of the examples.
        preflight_temperature (`float`, *optional*):
            Temperature of the answers that it scores, 0 for greedy ones. `None` means that of training.
        preflight_sources (`dict`, *optional*):
            Further sources by a name of one's own, each described as in `privileged_source`, to compare with the
            recipe's, by the pre-flight and by `align`.
        collect (`bool`, *optional*, defaults to `False`):
            Sample rows for supervised fine-tuning into `output_dir`, and do not train.
        collect_rows (`int`, *optional*):
            Rows of the training set to draw for that. `None` means each once.
        collect_layout (`list[str]`, *optional*, defaults to `["answer"]`):
            Rows that are made of the samples: `answer`, `distil`, `revision`, `generation`.
        collect_keep (`list`, *optional*):
            Conditions of what is kept, by name or as a mapping to their arguments: those of `when`, and `no_leak`,
            `not_truncated` and `unique`.
        collect_view (`str`, *optional*):
            View whose reader writes the answers, where the source gives several.
        align (`bool`, *optional*, defaults to `False`):
            Print whether the loss moves the student to better scores at single tokens, and do not train.
        align_rows (`int`, *optional*, defaults to `8`):
            Dataset rows for that.
        align_nodes (`int`, *optional*, defaults to `4`):
            Tokens of each rollout.
        align_candidates (`int`, *optional*, defaults to `4`):
            Most tokens to try in the place of each.
        align_samples (`int`, *optional*, defaults to `8`):
            Texts that are written from each, an even number.
        align_json (`bool`, *optional*, defaults to `False`):
            Print all figures as JSON.
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
    score_func: str | None = field(
        default=None, metadata={"help": "Score of evaluations and of the pre-flight, named as a reward function is."}
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
    prefix_tokens: int | None = field(
        default=None, metadata={"help": "Virtual tokens of a prefix, which alone are trained."}
    )
    prefix_text: str | None = field(default=None, metadata={"help": "Text file that the prefix starts from."})
    prefix_frozen: int | None = field(
        default=None, metadata={"help": "First virtual tokens that are not trained; 1 by default."}
    )
    preflight: bool = field(default=False, metadata={"help": "Print whether training is worth it, and do not train."})
    preflight_rows: int = field(default=32, metadata={"help": "Dataset rows for that."})
    preflight_json: bool = field(default=False, metadata={"help": "Print it as JSON."})
    preflight_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of the answers that it scores; by default that of training."}
    )
    preflight_sources: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further sources by name, to compare with the recipe's."}
    )
    collect: bool = field(default=False, metadata={"help": "Sample rows for fine-tuning, and do not train."})
    collect_rows: int | None = field(default=None, metadata={"help": "Rows to draw for that; by default each once."})
    collect_layout: list[str] = field(
        default_factory=lambda: ["answer"],
        metadata={"help": "Rows made of the samples: answer, distil, revision, generation."},
    )
    collect_keep: list[str] | None = field(
        default=None,
        metadata={"help": "Conditions of what is kept, and `no_leak`, `not_truncated`, `unique`."},
    )
    collect_view: str | None = field(default=None, metadata={"help": "View whose reader writes the answers."})
    align: bool = field(
        default=False, metadata={"help": "Print whether the loss moves the student to better scores, and do not train."}
    )
    align_rows: int = field(default=8, metadata={"help": "Dataset rows for that."})
    align_nodes: int = field(default=4, metadata={"help": "Tokens of each rollout."})
    align_candidates: int = field(default=4, metadata={"help": "Most tokens to try in the place of each."})
    align_samples: int = field(default=8, metadata={"help": "Texts that are written from each, an even number."})
    align_json: bool = field(default=False, metadata={"help": "Print all figures as JSON."})

    def __post_init__(self) -> None:
        self.collect_keep = [_described(one) for one in self.collect_keep or ()]
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
        if self.preflight and self.align:
            raise ValueError("`preflight` and `align` are both set: leave out one of them.")


def _described(condition: str | dict[str, Any]) -> str | dict[str, Any]:
    """Condition with arguments that stands as JSON on a command line, as a mapping."""
    return json.loads(condition) if isinstance(condition, str) and condition.startswith("{") else condition


def make_parser() -> TrlParser:
    """Parser of every option of a recipe."""
    return OPSDParser((OPSDScriptArguments, OPSDConfig, ModelConfig, DatasetMixtureConfig))


def parse(args: Sequence[str] | None = None) -> Parsed:
    """
    Options of a run from the command line and its recipe.

    Raises:
        UserError: For a mistake in them, in one sentence.
    """
    args = spelled(sys.argv[1:] if args is None else args)
    check(args)
    parser = make_parser()
    try:
        *parsed, unknown = parser.parse_args_and_config(args, return_remaining_strings=True)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    # Those that the check let pass, as it knows other versions of transformers
    known = [item.name for kind in parser.dataclass_types for item in fields(kind)]
    for text in unknown:
        if text.startswith("--"):
            name = text[2:].partition("=")[0]
            raise UserError(f"unknown option: `{name}`{near(name, known)}.")
    if unknown:
        raise UserError(
            f"{unknown[0]!r} belongs to no option: the one before it takes one value here, and a list in a recipe only."
        )
    return tuple(parsed)
