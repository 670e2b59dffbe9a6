# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
One run over a prompt that several rows share, then over their completions alone.

Legend: U distinct prompts, P prompt tokens, R rows, C completion tokens, H hidden size.
"""

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from trl_opsd.model.virtual_tokens import keeps_all_tokens, prompt_learning_config


# Kernels that take a mask over keys the queries are not part of. Others may, but were not tried
_ATTENTION = ("eager", "sdpa")
# Rotary embeddings with the same frequencies whatever the length, unlike `dynamic` and `longrope`
_ROPE_TYPES = {"default", "linear", "yarn", "llama3", "proportional"}


def can_share_prefix(model: nn.Module) -> bool:
    """
    Whether a reader can read a prompt once for several rows, as far as its config tells: every layer keeps keys and
    values of all tokens, which do not depend on what follows. Models that also see may count positions from the images
    of an earlier run, and an adapter with virtual tokens puts a cache or embeddings of its own in the place of the
    prompt's.

    Args:
        model (`nn.Module`): The reader before any wrapping, with its PEFT wrapper if its adapter is on.
    """
    if prompt_learning_config(model) is not None:
        return False
    config = model.config.get_text_config()
    if config is not model.config or not _rope_types(config) <= _ROPE_TYPES:
        return False
    return config._attn_implementation in _ATTENTION and keeps_all_tokens(model)


def _rope_types(config: PretrainedConfig) -> set[str]:
    """Types of rotary embedding that a config names, of all layers or of each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer = [one for one in parameters.values() if isinstance(one, dict)] or [parameters]
    return {one.get("rope_type", "default") for one in by_layer}


class _SharedLayer(DynamicLayer):
    """
    Keys and values of U prompts, handed out to R rows. What the rows add is not kept, so that the cache stays as large
    as the prompts are.
    """

    def __init__(self, prefilled: DynamicLayer, prompt_of: torch.Tensor):
        super().__init__()
        self.keys, self.values = prefilled.keys, prefilled.values
        self.prompt_of, self.is_initialized = prompt_of, True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        prompt_of = self.prompt_of.to(self.keys.device)  # layers may be on several GPUs
        keys, values = self.keys[prompt_of], self.values[prompt_of]
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def hidden_after_prefix(
    backbone: nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    prompt_of: torch.Tensor,
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Hidden states that predict the completion, of shape `(R, C, H)`: those of a run over prompts and completions, up to
    rounding.

    Args:
        backbone (`nn.Module`): The model without its head.
        prompt_ids, prompt_mask (`torch.Tensor` of shape `(U, P)`): Distinct prompts, left-padded.
        prompt_of (`torch.Tensor` of shape `(R,)`): Prompt of each row.
        completion_ids, completion_mask (`torch.Tensor` of shape `(R, C)`): Completions, right-padded.
        position_ids (`torch.Tensor` of shape `(U, P)`, *optional*): Positions of the prompts, where a model needs them.
    """
    first, rest = {}, {}
    if position_ids is not None:
        steps = torch.arange(1, completion_ids.shape[1], device=position_ids.device)
        first = {"position_ids": position_ids}
        rest = {"position_ids": position_ids[prompt_of][:, -1:] + steps}
    prefill = backbone(
        input_ids=prompt_ids, attention_mask=prompt_mask, past_key_values=DynamicCache(), use_cache=True, **first
    )
    cache = Cache(layers=[_SharedLayer(layer, prompt_of) for layer in prefill.past_key_values.layers])
    # Nothing follows the last token
    completions = backbone(
        input_ids=completion_ids[:, :-1],
        attention_mask=torch.cat([prompt_mask[prompt_of], completion_mask[:, :-1]], dim=1),
        past_key_values=cache,
        use_cache=True,
        **rest,
    ).last_hidden_state
    last = prefill.last_hidden_state[:, -1:]
    return torch.cat([last[prompt_of.to(last.device)], completions], dim=1)
