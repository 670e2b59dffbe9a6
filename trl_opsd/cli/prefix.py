# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Prefix of a recipe: keys and values before every prompt, PEFT's CARTRIDGE adapter, which alone is trained.

Its options are checked before torch is imported.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_opsd.cli.errors import UserError


if TYPE_CHECKING:
    from peft import PeftModel
    from trl import ModelConfig

    from trl_opsd.cli.arguments import OPSDScriptArguments
    from trl_opsd.config import OPSDConfig

# Options that do not go with a prefix, and why
BESIDE = {
    "use_peft": "is LoRA, and a prefix is an adapter of its own",
    "load_in_4bit": "was not tried with a prefix",
    "load_in_8bit": "was not tried with a prefix",
    "use_vllm": "would sample without the prefix",
    "use_transformers_continuous_batching": "would sample without the prefix",
}


def is_on(value: Any) -> bool:
    """Whether an option of a recipe or a command line is true."""
    return str(value).lower() in ("true", "yes", "t", "y", "1")


def check_prefix(given: Mapping[str, Any]) -> None:
    """
    Check the options of a prefix beside the others.

    Args:
        given (`Mapping[str, Any]`): Values of the options that recipe and command line give.

    Raises:
        UserError: For the first mistake.
    """
    tokens = given.get("prefix_tokens")
    if tokens is None:
        for name in ("prefix_text", "prefix_frozen"):
            if given.get(name) is not None:
                raise UserError(f"`{name}` belongs to a prefix: set `prefix_tokens`, its length, or leave it out.")
        return
    tokens, frozen = int(tokens), int(given.get("prefix_frozen") or 0)
    if tokens < 1:
        raise UserError(f"`prefix_tokens` must be at least 1, got {tokens}.")
    if not 0 <= frozen < tokens:
        raise UserError(f"`prefix_frozen` must be from 0 to `prefix_tokens` - 1 ({tokens - 1}), got {frozen}.")
    for name, why in BESIDE.items():
        if is_on(given.get(name)):
            raise UserError(f"`{name}` {why}: leave out `{name}` or `prefix_tokens`.")
    if not str(given.get("gradient_checkpointing", True)).lower() == "false":
        raise UserError(
            "`gradient_checkpointing` is true by default and would drop the prefix: set it to false beside "
            "`prefix_tokens`."
        )


def text_of(path: str | Path) -> str:
    """Text that a prefix starts from."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"`prefix_text` is {path}, which can't be read ({error}): name a text file.") from error
    if not text:
        raise UserError(f"`prefix_text` is {path}, which is empty: name a file with text, or leave it out.")
    return text


def model_with_prefix(
    script_args: "OPSDScriptArguments", training_args: "OPSDConfig", model_args: "ModelConfig"
) -> "PeftModel":
    """
    Model of a recipe with its prefix: keys and values of the first tokens of `prefix_text` as a system message, or
    random ones.

    Raises:
        UserError: If there is no such text, or it has fewer tokens than the prefix.
    """
    text = None if script_args.prefix_text is None else text_of(script_args.prefix_text)
    from peft import CartridgeConfig, get_peft_model, initialize_kv_prefix_from_text
    from transformers import AutoTokenizer, set_seed
    from trl.trainer.utils import create_model_from_path

    set_seed(training_args.seed)
    name, kwargs = model_args.model_name_or_path, training_args.model_init_kwargs
    frozen = 1 if script_args.prefix_frozen is None else script_args.prefix_frozen
    config = CartridgeConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=script_args.prefix_tokens,
        num_frozen_tokens=min(frozen, script_args.prefix_tokens - 1),
    )
    model = get_peft_model(create_model_from_path(name, **kwargs), config)
    training_args.model_init_kwargs = None  # TRL would warn that it ignores them
    if text is not None:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=model_args.model_revision)
        try:
            # Keys and values do not depend on later tokens
            initialize_kv_prefix_from_text(model, tokenizer, text=text, max_length=script_args.prefix_tokens)
        except ValueError as error:
            if "cached tokens" not in str(error):
                raise
            raise UserError(
                f"`prefix_text` {script_args.prefix_text} has fewer tokens than `prefix_tokens="
                f"{script_args.prefix_tokens}`: lower the latter, or name a longer text."
            ) from error
    return model
