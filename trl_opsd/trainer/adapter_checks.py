# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Checks of adapters with virtual tokens (prefix tuning, cartridges, prompt tuning, p-tuning) in a run that distils."""

from peft import PeftConfig
from torch import nn
from trl import GRPOConfig

from trl_opsd.model.virtual_tokens import CACHED, EMBEDDED, check_reads_virtual_tokens, kind_of, prompt_learning_config


NOT_RELOADABLE = (
    "{} would load another model than was saved: PEFT keeps of an adapter of kind {} what its encoder makes, and not "
    "the encoder. Train in one go, or use CARTRIDGE, PROMPT_TUNING, or PREFIX_TUNING without `prefix_projection`."
)


def check_adapter_options(args: GRPOConfig, config: PeftConfig | None) -> None:
    """
    Check the options of a run beside an adapter with virtual tokens, before the model is loaded.

    Args:
        args ([`~trl.GRPOConfig`]): Options.
        config (`PeftConfig`, *optional*): Config of the adapter, checked if it is one of prompt learning.

    Raises:
        ValueError: If an option leaves the virtual tokens out, or breaks on them.
    """
    if config is None or not config.is_prompt_learning:
        return
    kind = kind_of(config)
    if kind not in CACHED + EMBEDDED:
        raise ValueError(
            f"The adapter is {kind}, which takes inputs that training does not give it: use CARTRIDGE, PREFIX_TUNING, "
            "PROMPT_TUNING or P_TUNING."
        )
    if kind in CACHED and args.gradient_checkpointing:
        raise ValueError(
            f"`gradient_checkpointing=True`, which is the default, drops the cache in which an adapter of kind {kind} "
            "keeps its virtual tokens: set `gradient_checkpointing=False`."
        )
    for name, engine in (("use_vllm", "vLLM"), ("use_transformers_continuous_batching", "Continuous batching")):
        if getattr(args, name):
            raise ValueError(
                f"{engine} would sample without the virtual tokens of an adapter of kind {kind}: leave `{name}` out."
            )
    if args.load_best_model_at_end and not is_reloadable(config):
        raise ValueError(NOT_RELOADABLE.format("`load_best_model_at_end`", kind))


def is_reloadable(config: PeftConfig) -> bool:
    """Whether a checkpoint holds the parameters of an adapter with virtual tokens, and not what its encoder makes of
    them."""
    return kind_of(config) != "P_TUNING" and not getattr(config, "prefix_projection", False)


def check_adapter_model(core: nn.Module) -> None:
    """
    Check that the model can read the virtual tokens of its adapter, if it has some.

    Args:
        core (`nn.Module`): The student before any wrapping, with its PEFT wrapper if it has one.

    Raises:
        ValueError: If it can't.
    """
    config = prompt_learning_config(core)
    if config is not None:
        check_reads_virtual_tokens(core.get_base_model(), kind_of(config))


def check_resumable(core: nn.Module) -> None:
    """
    Refuse to resume an adapter whose checkpoints hold what its encoder made of its parameters, and not these.

    Args:
        core (`nn.Module`): The student before any wrapping, with its PEFT wrapper if it has one.

    Raises:
        ValueError: If it is one.
    """
    config = prompt_learning_config(core)
    if config is not None and not is_reloadable(config):
        raise ValueError(NOT_RELOADABLE.format("`resume_from_checkpoint`", kind_of(config)))
