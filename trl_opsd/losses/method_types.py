# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Types of what a method adds to the loss: token weights, auxiliary losses and losses of hidden states.

Legend: t tokens, V vocabulary, K views; p student, q teacher; y the sampled token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenStats:
    """
    Statistics of some tokens, without gradient, in nats at the temperature of the distillation.

    Args:
        teacher_logps, teacher_entropy (`torch.Tensor` of shape `(K, t)`): log q(y) and entropy of q under each view.
        student_logps, student_entropy (`torch.Tensor` of shape `(t,)`): log p(y) and entropy of p.
        relative_positions (`torch.Tensor` of shape `(t,)`): Relative position among the model tokens of the
            completion, in (0, 1): (i - 0.5) / n for the i-th of n.
        rows (`torch.Tensor` of shape `(t,)`): Row of the micro-batch that each token is of.
        taught (`torch.Tensor` of shape `(K, t)`): Whether a view teaches the token.
        turns (`torch.Tensor` of shape `(t,)`, *optional*): Number of the turn of its completion that each token is of,
            from 0. The trainer always gives it.
    """

    teacher_logps: torch.Tensor
    teacher_entropy: torch.Tensor
    student_logps: torch.Tensor
    student_entropy: torch.Tensor
    relative_positions: torch.Tensor
    rows: torch.Tensor
    taught: torch.Tensor
    turns: torch.Tensor | None = None


# From the statistics to factors of shape `(t,)` or `(K, t)`
TokenWeight = Callable[[TokenStats], torch.Tensor]


@dataclass(frozen=True)
class Tile:
    """
    A few tokens with their whole distributions, at the temperature of the distillation. Nothing of it has a gradient:
    an auxiliary loss gives its own in closed form.

    Args:
        log_p, p (`torch.Tensor` of shape `(t, V)`): Log-probabilities of the student, and probabilities.
        log_qs (`list[torch.Tensor]` of length K): Log-probabilities of the teacher under each view, `(t, V)`.
        labels (`torch.Tensor` of shape `(t,)`): The sampled tokens.
        old_logps (`torch.Tensor` of shape `(t,)`, *optional*): log p(y) when they were sampled, `nan` where unknown.
        taught (`torch.Tensor` of shape `(K, t)`): Whether a view teaches the token.
        token_slice (`slice`): These tokens among all distilled ones of the micro-batch.
        all_tokens ([`TokenStats`], *optional*): Of all tokens of the micro-batch, under `needs_all_tokens`.
    """

    log_p: torch.Tensor
    p: torch.Tensor
    log_qs: list[torch.Tensor]
    labels: torch.Tensor
    old_logps: torch.Tensor | None
    taught: torch.Tensor
    token_slice: slice
    all_tokens: TokenStats | None = None

    def on_label(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the sampled tokens, `(t,)`, from those of the vocabulary."""
        return log_probs.gather(-1, self.labels.unsqueeze(-1)).squeeze(-1)

    def label_gradient(self, factor: torch.Tensor) -> torch.Tensor:
        """Gradient on the logits, `(t, V)`, of a loss whose derivative by log p(y) is `factor`, `(t,)`:
        factor (1[v = y] - p_v)."""
        factor = factor.unsqueeze(-1)
        return (-factor * self.p).scatter_add_(-1, self.labels.unsqueeze(-1), factor)


# From a tile to a loss of each token, `(t,)`, and its gradient on the tempered logits, `(t, V)`
AuxiliaryLoss = Callable[[Tile], tuple[torch.Tensor, torch.Tensor]]


# From hidden states of the student `(M, H)`, with gradient, those of the teacher `(K, M, H)` and weights `(K, M)` to a
# loss
HiddenStateLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
