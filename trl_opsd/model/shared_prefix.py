# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
One run over a prompt that several rows share, then over their completions alone.

Legend: U distinct prompts, P prompt tokens, R rows, C completion tokens, H hidden size.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


# Kernels that take a mask over keys the queries are not part of. Others may, but were not tried
_ATTENTION = ("eager", "sdpa")


def can_share_prefix(model: PreTrainedModel) -> bool:
    """
    Whether every layer of `model` keeps keys and values of all tokens. Sliding windows, linear attention and layers
    that borrow another layer's keys do not. Models that also see may count positions from the images of an earlier run.
    """
    config = model.config.get_text_config()
    if config is not model.config:
        return False
    if config._attn_implementation not in _ATTENTION or getattr(config, "num_kv_shared_layers", 0):
        return False
    if getattr(model, "_is_stateful", False) or not hasattr(config, "num_hidden_layers"):
        return False
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


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
