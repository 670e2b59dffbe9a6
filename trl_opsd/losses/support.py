# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Top-k support of a divergence: the set of tokens that are compared, and the gradient on the whole vocabulary.

Legend: N tokens, V vocabulary, S the set, K its slots, C classes: K, or K + 1 with a tail; p student, q teacher.
"""

from dataclasses import dataclass

import torch

from trl_opsd.losses.divergence_spec import DivergenceSpec
from trl_opsd.losses.divergences import LOG_ZERO, Pair, logit_gradient


@dataclass(frozen=True)
class Support:
    """
    Classes of a top-k set, with student and teacher on them.

    Args:
        pair ([`Pair`]): Student and teacher on the classes, `(N, C)`.
        mass_p, mass_q (`torch.Tensor` of shape `(N,)`): Probability of S under student and teacher.
        ids (`torch.Tensor` of shape `(N, K)`): Tokens of S.
        full (`torch.Tensor` of shape `(N, V)`): The student's probabilities.
        spec ([`DivergenceSpec`]): How the rest of the vocabulary is treated.
    """

    pair: Pair
    mass_p: torch.Tensor
    mass_q: torch.Tensor
    ids: torch.Tensor
    full: torch.Tensor
    spec: DivergenceSpec

    def logit_gradient(self, slopes: torch.Tensor) -> torch.Tensor:
        """
        Gradient on the logits of the whole vocabulary, of shape `(N, V)`, from slopes on the classes, `(N, C)`.

        Renormalised, only S moves. With a tail, a token outside S moves as its share of that class: p_v f_tail, with
        f_tail the slope of the tail per unit of its probability. With the stop-gradient form, p_v (r_v [v in S] -
        sum_S p r).
        """
        # Added, not written: a slot of the union that holds a token again adds 0
        if self.spec.stop_gradient:
            return (self.full * -slopes.sum(-1, keepdim=True)).scatter_add_(-1, self.ids, slopes)
        on_classes = logit_gradient(slopes, self.pair.p)  # (N, C)
        if not self.spec.add_tail:
            return torch.zeros_like(self.full).scatter_add_(-1, self.ids, on_classes)
        on_set, on_tail = on_classes[:, :-1], on_classes[:, -1:]
        tail = self.pair.p[:, -1:]
        # d log p_tail / dz_v = p_v / p_tail for v outside S. A tail too thin for its own probability moves nobody
        thin = torch.finfo(tail.dtype).tiny
        outside = self.full.scatter(-1, self.ids, 0.0)
        gradient = outside * torch.where(tail > thin, on_tail / tail.clamp(min=thin), 0.0)
        return gradient.scatter_add_(-1, self.ids, on_set)


def _set_ids(pair: Pair, spec: DivergenceSpec) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids of S, `(N, K)`, and the mask of slots that repeat a token, which only the union has."""
    if spec.topk_source != "union":
        source = pair.log_p if spec.topk_source == "student" else pair.log_q
        return source.topk(spec.topk, dim=-1).indices, None
    first, second = (source.topk(spec.topk, dim=-1).indices for source in (pair.log_p, pair.log_q))
    in_first = torch.zeros_like(pair.p, dtype=torch.bool).scatter_(-1, first, True)
    again = torch.cat([torch.zeros_like(first, dtype=torch.bool), in_first.gather(-1, second)], dim=-1)
    return torch.cat([first, second], dim=-1), again


def _log_rest(log_probs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """
    Log-probability of all tokens but `ids`, of shape `(N, 1)`.

    Summed over the rest itself: 1 minus the probability of the set would round away once the set holds nearly all.
    """
    return log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)


def top_k_support(pair: Pair, spec: DivergenceSpec) -> Support:
    """
    Restrict both distributions to the `spec.topk` most likely tokens of the student, the teacher, or either.

    Both are renormalised over the set, or the rest of the vocabulary is one more class, as in SDPO
    (huggingface.co/papers/2601.20802), or both stay as they are, for the stop-gradient form.

    Args:
        pair ([`Pair`]): Student and teacher on the vocabulary, `(N, V)`.
        spec ([`DivergenceSpec`]): Size, source and kind of the set.
    """
    ids, again = _set_ids(pair, spec)

    def on_classes(log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = log_probs.gather(-1, ids)
        if again is not None:
            chosen = chosen.masked_fill(again, LOG_ZERO)
        mass = chosen.exp().sum(-1)
        if spec.add_tail:
            return torch.cat([chosen, _log_rest(log_probs, ids)], dim=-1), mass
        return (chosen if spec.stop_gradient else chosen.log_softmax(-1)), mass

    (set_p, mass_p), (set_q, mass_q) = on_classes(pair.log_p), on_classes(pair.log_q)
    return Support(Pair.of(set_p, set_q), mass_p, mass_q, ids, pair.p, spec)
