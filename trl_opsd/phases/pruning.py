# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Depth pruning: the contiguous block of layers that turns the hidden states least is left out (The Unreasonable
Ineffectiveness of the Deeper Layers, 2403.17887; as a start of self-data distillation, 2410.09982).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """
    Decoder layers of a model.

    Raises:
        ValueError: If there is not exactly one list of as many modules as the config has layers.
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == count]
    if len(lists) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(lists)} lists of {count} layers, so which ones to leave out is not known."
        )
    return lists[0]


@contextmanager
def _recorded(layers: nn.ModuleList) -> Iterator[list[torch.Tensor]]:
    """Hidden states before each layer and after the last, `(B, T, H)` each, of the forward within the block."""
    states: list[torch.Tensor] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        states.append((args[0] if args else kwargs["hidden_states"]).detach())

    def after(module: nn.Module, args: tuple, output: torch.Tensor | tuple) -> None:
        states.append((output[0] if isinstance(output, tuple) else output).detach())

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(after))
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def angular_distances(model: PreTrainedModel, rows: Iterable[list[int]], block: int) -> torch.Tensor:
    """
    Mean angle between the hidden states before and after each contiguous block of layers, as a share of a half turn,
    over all tokens: `(L - block + 1,)` for L layers.

    Args:
        model (`PreTrainedModel`): A causal language model.
        rows (`Iterable[list[int]]`): Token ids of texts.
        block (`int`): Layers of a block.

    Raises:
        ValueError: If there is no text, or not that many layers.
    """
    layers = layers_of(model)
    if not 0 <= block < len(layers):
        raise ValueError(f"`layers` must be from 0 to {len(layers) - 1}, one less than the model has, got {block}.")
    total, tokens = torch.zeros(len(layers) - block + 1, dtype=torch.float64), 0
    with torch.no_grad(), _recorded(layers) as states:
        for ids in rows:
            states.clear()
            model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
            for start in range(len(total)):
                one, other = states[start].double(), states[start + block].double()
                cosine = nn.functional.cosine_similarity(one, other, dim=-1).clamp(-1.0, 1.0)  # (1, T)
                total[start] += (cosine.arccos() / torch.pi).sum().cpu()
            tokens += len(ids)
    if tokens == 0:
        raise ValueError("There is no text to compare hidden states on.")
    return total / tokens


def drop_layers(model: PreTrainedModel, start: int, block: int) -> None:
    """
    Leave out layers of a model, in place, and set its config to those that stay.

    Args:
        model (`PreTrainedModel`): A causal language model.
        start (`int`): First layer that is left out.
        block (`int`): How many are.
    """
    layers = layers_of(model)
    count = len(layers)
    kept = [number for number in range(count) if not start <= number < start + block]
    left = [layers[number] for number in kept]
    del layers[len(kept) :]
    for number, layer in enumerate(left):
        layers[number] = layer
        for module in layer.modules():  # the place of its keys and values in a cache
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = number
    _fix(model.config.get_text_config(), count, kept)


def _fix(config: PretrainedConfig, count: int, kept: list[int]) -> None:
    """Number of layers, and lists with a value for each."""
    for name, value in list(config.to_dict().items()):
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == count:
            setattr(config, name, [value[number] for number in kept])
    config.num_hidden_layers = len(kept)
