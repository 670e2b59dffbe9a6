# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Position ids of rows that are padded on the left.

Models with absolute positions (learned or sinusoidal) count them from the first column of a batch unless they are told
otherwise, so that a row would be read otherwise beside longer rows than alone. Whether a model does is measured on a
few tokens; those that do not are called as before. Behind virtual tokens the padding stands within the row, so that
every model would count it.

Legend: B rows, T tokens, V virtual tokens of a prompt-learning adapter.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from trl_opsd.model.evaluation import rounding_step, without_dropout


_TOKENS, _PADDING = 8, 32
# Share of a hidden state by which padding may change it: so many steps of its type, and so much in any case
_STEPS, _LEAST = 8, 1e-3
_LEAK = 10  # times as much is more than rounding in any model


class PaddedPositions:
    """
    Gives a model position ids that do not count padding, if it needs them, which the first call measures.

    Args:
        virtual_tokens (`bool`): Whether an adapter puts virtual tokens before the padding, so that it needs them.
    """

    def __init__(self, virtual_tokens: bool = False) -> None:
        self._virtual_tokens = virtual_tokens
        self._needed: bool | None = None

    def added(self, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """
        Keyword arguments of a forward, with `position_ids` if the model needs them and has none.

        Args:
            model ([`~transformers.PreTrainedModel`]): Causal language model, within its wrapped forward.
            args, kwargs: Arguments of that forward, with ids or embeddings of T tokens and an `attention_mask` of shape
                `(B, T)`; `(B, V + T)` behind V virtual tokens or tokens in a cache.

        Raises:
            ValueError: If padding changes what the model says and position ids do not help.
        """
        mask = kwargs.get("attention_mask")
        read = next(one for one in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args) if one is not None)
        if self._needed is None:
            self._needed = needs_position_ids(model, read.device) or self._virtual_tokens
        if not self._needed or kwargs.get("position_ids") is not None or getattr(mask, "ndim", 0) != 2:
            return kwargs
        return {**kwargs, "position_ids": position_ids(mask)[:, -read.shape[1] :]}


def position_ids(mask: torch.Tensor) -> torch.Tensor:
    """Position of each token among those of its row, and 0 before the first, for a mask of shape `(B, T)`."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def needs_position_ids(model: PreTrainedModel, device: torch.device) -> bool:
    """
    Whether a model reads tokens otherwise behind padding unless it is given position ids.

    Args:
        model ([`~transformers.PreTrainedModel`]): Causal language model, within its wrapped forward.
        device (`torch.device`): Where it reads.

    Raises:
        ValueError: If it reads them otherwise with position ids too, or takes none.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _TOKENS + _PADDING
    padding = max(min(_PADDING, limit - _TOKENS), 1)
    ids = torch.arange(_TOKENS, device=device).unsqueeze(0)
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    padded = {name: nn.functional.pad(values, (padding, 0)) for name, values in alone.items()}
    with without_dropout(model):
        expected = _hidden(model, alone)
        largest = max(_STEPS * rounding_step(model, expected), _LEAST)
        change = _change(expected, _hidden(model, padded))
        if change > largest and takes_position_ids(model):
            change = _change(
                expected, _hidden(model, {**padded, "position_ids": position_ids(padded["attention_mask"])})
            )
            if change <= largest:
                return True
    if change > _LEAK * largest:
        raise ValueError(
            f"{type(model).__name__} reads a row otherwise behind padding than alone (its hidden states change by "
            f"{change:.0%}), and position ids do not mend that. Rows are padded on the left, so their losses would "
            "depend on the rows beside them. Use a model of another family."
        )
    return False


def _hidden(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.base_model(**inputs, use_cache=False).last_hidden_state[0, -_TOKENS:]


def _change(expected: torch.Tensor, other: torch.Tensor) -> float:
    """Change of a hidden state `(T, H)` as a share of it, the median over its tokens: routers of experts may turn by
    rounding for a few."""
    expected, other = expected.float(), other.float()
    return ((other - expected).norm(dim=-1) / expected.norm(dim=-1)).median().item()


def takes_position_ids(model: PreTrainedModel) -> bool:
    """Whether position ids of shape `(B, T)` can be given. Models that also see count in several dimensions."""
    if model.config.get_text_config() is not model.config:
        return False
    forwards = type(model).forward, type(model.base_model).forward
    return all("position_ids" in inspect.signature(forward).parameters for forward in forwards)
