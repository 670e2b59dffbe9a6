# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Prompt-learning adapters (prefix tuning, cartridges, prompt tuning, p-tuning): virtual tokens before every row.

They stand in PEFT's wrapper and not in the layers. Prefix tuning and cartridges are keys and values that every layer
finds in its cache; prompt tuning and p-tuning are embeddings. PEFT puts them before the padding of a row.
"""

import functools
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from trl_opsd.model.positions import takes_position_ids


CACHED = ("PREFIX_TUNING", "CARTRIDGE")
EMBEDDED = ("PROMPT_TUNING", "P_TUNING")


def prompt_learning_config(model: nn.Module) -> PeftConfig | None:
    """
    Config of a model's active adapter, `None` unless it has virtual tokens.

    Args:
        model (`nn.Module`): The model before any wrapping, with its PEFT wrapper if it has one.
    """
    config = getattr(model, "active_peft_config", None)
    return config if config is not None and config.is_prompt_learning else None


def kind_of(config: PeftConfig) -> str:
    """Kind of an adapter as PEFT names it, such as `CARTRIDGE`."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def keeps_all_tokens(model: nn.Module) -> bool:
    """Whether every layer keeps keys and values of all tokens, as far as the config tells: unlike sliding windows,
    linear attention, and layers that borrow another layer's keys."""
    config = model.config.get_text_config()
    if getattr(config, "num_kv_shared_layers", 0) or not hasattr(config, "num_hidden_layers"):
        return False
    if getattr(model, "_is_stateful", False):
        return False
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def mend_generation(model: PreTrainedModel | PeftModel) -> None:
    """
    Let a model with virtual tokens generate under transformers 5.24, which calls the cache `cache`. PEFT (0.21.2) looks
    for it under its former name `past_key_values`, takes each step for the first, and forgets the prompt after one
    token. Nothing changes for other adapters and under older versions of transformers.

    Args:
        model (`PreTrainedModel` or `PeftModel`): A causal language model, with its adapter if it has one.
    """
    if prompt_learning_config(model) is None:
        return
    prepare = model.base_model_prepare_inputs_for_generation

    @functools.wraps(prepare)
    def renamed(*args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = prepare(*args, **kwargs)
        if "cache" in inputs:
            inputs["past_key_values"] = inputs.pop("cache")
        return inputs

    model.base_model_prepare_inputs_for_generation = renamed


def check_reads_virtual_tokens(model: PreTrainedModel, kind: str) -> None:
    """
    Check that a model can read virtual tokens before rows of several lengths.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model, under its PEFT wrapper.
        kind (`str`): Kind of its adapter.

    Raises:
        ValueError: If it can't.
    """
    name = type(model).__name__
    if not takes_position_ids(model):
        raise ValueError(
            f"The adapter is {kind}, whose virtual tokens stand before the padding of a row, and {name} takes no "
            "position ids that skip it, so that a row would depend on those beside it: use LoRA, or another model."
        )
    if not keeps_all_tokens(model):
        raise ValueError(
            f"The adapter is {kind}, whose virtual tokens every later token has to see, and layers of {name} see a "
            "window or a summary of the tokens before: use LoRA, or a model with full attention in every layer."
        )
