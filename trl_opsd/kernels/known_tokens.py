# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Teacher distributions of which few log-probabilities are known: those of the teacher's k likeliest tokens and of the
label, as a server tells them.

Legend: M distilled tokens, V vocabulary, K views, k known tokens, t tokens of a tile; q teacher, y the label.
"""

from dataclasses import dataclass

import torch

from trl_opsd.losses.divergences import LOG_ZERO


LEAST_REST = 1e-7  # of the vocabulary beyond the known tokens: 1 minus a sum in float32 says nothing below it


@dataclass(frozen=True)
class KnownTokens:
    """
    Known log-probabilities of each view's teacher, at temperature 1.

    Args:
        ids (`torch.Tensor` of shape `(K, M, k)`): The teacher's k likeliest tokens.
        logps (`torch.Tensor` of shape `(K, M, k)`): Their log-probabilities, in nats.
        label_logps (`torch.Tensor` of shape `(K, M)`): Log-probabilities of the labels, among those tokens or not.
    """

    ids: torch.Tensor
    logps: torch.Tensor
    label_logps: torch.Tensor

    def to(self, device: torch.device) -> "KnownTokens":
        """The same on a device."""
        return KnownTokens(self.ids.to(device), self.logps.to(device), self.label_logps.to(device))

    def of(self, rows: slice) -> "KnownTokens":
        """The same of some of the tokens."""
        return KnownTokens(self.ids[:, rows], self.logps[:, rows], self.label_logps[:, rows])

    def distributions(self, labels: torch.Tensor, student: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        Log-probabilities and probabilities `(t, V)` of each view, by [`completed`].

        Args:
            labels (`torch.Tensor` of shape `(t,)`): The labels of these tokens.
            student (`torch.Tensor` of shape `(t, V)`): The student's log-probabilities, for V and the type.
        """
        logps, of_labels = self.logps.to(student.dtype), self.label_logps.to(student.dtype)
        views = zip(self.ids, logps, of_labels, strict=True)
        log_qs = [completed(ids, known, labels, of_label, student.shape[-1]) for ids, known, of_label in views]
        return [(log_q, log_q.exp()) for log_q in log_qs]


def completed(
    ids: torch.Tensor, logps: torch.Tensor, labels: torch.Tensor, label_logps: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """
    Distribution with the known log-probabilities and the largest entropy, as log-probabilities `(t, V)`: tokens that
    are not known share the rest of the probability evenly.

    The teacher's top-k set of it, that set's probabilities, their tail and log q(y) are those of the true distribution.
    Nothing else is.

    Args:
        ids, logps (`torch.Tensor` of shape `(t, k)`): Likeliest tokens, and their log-probabilities.
        labels, label_logps (`torch.Tensor` of shape `(t,)`): Labels, and their log-probabilities.
        vocabulary (`int`): V.
    """
    labels, label_logps = labels.unsqueeze(-1), label_logps.unsqueeze(-1)
    log_q = logps.new_full((len(ids), vocabulary), -torch.inf)
    log_q.scatter_(-1, labels, label_logps).scatter_(-1, ids, logps)
    unknown = torch.ones_like(log_q, dtype=torch.bool).scatter_(-1, labels, False).scatter_(-1, ids, False)
    rest = (1 - log_q.exp().sum(-1, keepdim=True, dtype=torch.float64)).clamp(min=LEAST_REST)
    share = (rest / unknown.sum(-1, keepdim=True).clamp(min=1)).log().to(log_q.dtype)
    # Below each token of the set, so that rounding brings none into it
    least = logps.amin(-1, keepdim=True)
    share = share.minimum(least.nextafter(torch.full_like(least, -torch.inf)))
    return torch.where(unknown, share, log_q).clamp_(min=LOG_ZERO)
