# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Adapters with virtual tokens, and such ones that hold exactly what a text is in the model."""

import copy

import torch
from peft import (
    CartridgeConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)


COUNT = 4
VIRTUAL = {"task_type": TaskType.CAUSAL_LM, "num_virtual_tokens": COUNT}
ADAPTERS = {
    "prefix": PrefixTuningConfig(**VIRTUAL),
    "prompt": PromptTuningConfig(**VIRTUAL),
    "p-tuning": PromptEncoderConfig(**VIRTUAL, encoder_hidden_size=16),
    "cartridge": CartridgeConfig(**VIRTUAL),
}
CACHED = ("prefix", "cartridge")


def adapter(name, **options):
    """A config of its own, as PEFT fills in what it finds in the model."""
    config = copy.deepcopy(ADAPTERS[name])
    for option, value in options.items():
        setattr(config, option, value)
    return config


@torch.no_grad()
def holding(model, name, ids) -> PeftModel:
    """A model whose adapter is what the model makes of these tokens: their keys and values, or their embeddings."""
    ids = torch.tensor([ids])
    cache = model(input_ids=ids, use_cache=True).past_key_values
    held = get_peft_model(model, adapter(name, num_virtual_tokens=ids.shape[1]))
    encoder = held.prompt_encoder["default"]
    if name == "prompt":
        encoder.embedding.weight.copy_(model.get_input_embeddings()(ids)[0])
        return held
    # (V, layers, keys and values, heads, D), as PEFT keeps them
    layers = [torch.stack([layer.keys[0], layer.values[0]]).permute(2, 0, 1, 3) for layer in cache.layers]
    packed = torch.stack(layers, 1).reshape(ids.shape[1], -1)
    if name == "prefix":
        encoder.embedding.weight.copy_(packed)
    else:
        encoder.load_prompt_embeddings(packed)
    return held
