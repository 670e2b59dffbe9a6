# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Policy loss that is trained in the same pass over the head as the distillation loss.

The gradient of any loss of the log-probabilities and entropies of the tokens is a factor for each token times a closed
form on its logits. The factors are known once the loss has been computed from log-probabilities alone, so one more
product for those, 2 NHV, replaces a second pass over the head, 8 NHV with its recomputation.

Legend: N tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trl_opsd.kernels.chunks import chunks
from trl_opsd.kernels.compiled import by_tile
from trl_opsd.kernels.head import Head
from trl_opsd.kernels.tile import label_score


@dataclass
class PolicyTerm:
    """
    Policy loss of the log-probabilities and entropies of all tokens.

    Args:
        loss (`Callable[[torch.Tensor, torch.Tensor], torch.Tensor]`): From the log-probabilities of the labels and the
            entropies, both of shape `(N,)`, to the loss, a 0-d tensor.
        temperature (`float`): Temperature of the distribution that they are of.
    """

    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    temperature: float


@dataclass
class Scored:
    """
    Value of a policy loss and its derivatives by the log-probability and entropy of each token.

    Args:
        loss (`torch.Tensor`, 0-d): The loss.
        on_logps, on_entropy (`torch.Tensor` of shape `(N,)`): Its derivatives, 0 without gradient.
        raw (`torch.Tensor` of shape `(N, V)`, *optional*): Raw logits, kept where all tokens are one chunk.
    """

    loss: torch.Tensor
    on_logps: torch.Tensor
    on_entropy: torch.Tensor
    raw: torch.Tensor | None


@torch.no_grad()
def label_scores(
    head: Head, hidden: torch.Tensor, labels: torch.Tensor, temperature: float, chunk_size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Log-probabilities of the labels and entropies, both of shape `(N,)`, without gradient.

    Args:
        head ([`Head`]): Prepared head.
        hidden (`torch.Tensor` of shape `(N, H)`): Hidden states.
        labels (`torch.Tensor` of shape `(N,)`): Tokens.
        temperature (`float`): Temperature of the distribution.
        chunk_size (`int`, *optional*): Most tokens of a chunk.
    """
    return _scores(head, hidden, labels, temperature, chunk_size)[:2]


def _scores(
    head: Head, hidden: torch.Tensor, labels: torch.Tensor, temperature: float, chunk_size: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """[`label_scores`], and the raw logits `(N, V)` if all tokens were one chunk."""
    weight = head.weight
    cut = chunks(len(hidden), len(weight), 1, weight.dtype, weight.device, chunk_size)
    values = hidden.new_empty(2, len(hidden), dtype=torch.promote_types(weight.dtype, torch.float32))
    raw = None
    for rows in cut:
        raw = head.project(hidden[rows], raw)

        def run(function: Callable, tile: slice, raw: torch.Tensor = raw, rows: slice = rows) -> None:
            token_slice = slice(rows.start + tile.start, rows.start + tile.stop)
            values[:, token_slice] = torch.stack(function(raw[tile], labels[token_slice], head, temperature))

        by_tile(label_score, run, raw)
    return values[0], values[1], raw if len(cut) == 1 else None


def score(
    policy: PolicyTerm, head: Head, hidden: torch.Tensor, labels: torch.Tensor, chunk_size: int | None, grad: bool
) -> Scored:
    """
    Compute a policy loss and how it depends on each token.

    Args:
        policy ([`PolicyTerm`]): The loss.
        head ([`Head`]): Prepared student head.
        hidden (`torch.Tensor` of shape `(N, H)`): Student hidden states.
        labels (`torch.Tensor` of shape `(N,)`): Sampled tokens.
        chunk_size (`int`, *optional*): Most tokens of a chunk.
        grad (`bool`): Whether a gradient is asked for.
    """
    *values, raw = _scores(head, hidden, labels, policy.temperature, chunk_size)
    on_values = [torch.zeros_like(value) for value in values]
    with torch.set_grad_enabled(grad):
        values = [value.requires_grad_(grad) for value in values]
        loss = policy.loss(*values)
        if loss.requires_grad:
            given = torch.autograd.grad(loss, values, allow_unused=True)
            on_values = [zero if one is None else one for one, zero in zip(given, on_values, strict=True)]
    return Scored(loss.detach(), *on_values, raw)
