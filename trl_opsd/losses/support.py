# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Restricting a divergence to a top-k set of tokens.

Legend: N tokens, V vocabulary, K tokens in the set S, C classes: K, or K + 1 with a tail.
"""

from dataclasses import dataclass

import torch

from trl_opsd.losses.divergences import DivergenceSpec, logit_gradient


@dataclass
class Support:
    """
    The classes a divergence is computed on, and the way back to the vocabulary.

    Args:
        log_p, log_q (`torch.Tensor` of shape `(N, C)`): Log-probabilities of student and teacher on the classes.
        mass_p, mass_q (`torch.Tensor` of shape `(N,)`): Probability of S under student and teacher.
        ids (`torch.Tensor` of shape `(N, K)`): Tokens of S.
        tail (`bool`): Whether the last class is the rest of the vocabulary.
    """

    log_p: torch.Tensor
    log_q: torch.Tensor
    mass_p: torch.Tensor
    mass_q: torch.Tensor
    ids: torch.Tensor
    tail: bool

    def logit_gradient(self, slopes: torch.Tensor, log_p_full: torch.Tensor) -> torch.Tensor:
        """
        Gradient on the logits of the whole vocabulary, of shape `(N, V)`, from slopes on the classes, `(N, C)`.

        Without a tail only S moves. With one, a token outside S moves as its share of the tail class: p_v f_tail, with
        f_tail the slope of the tail per unit of its probability.
        """
        on_classes = logit_gradient(slopes, self.log_p)  # (N, C)
        if not self.tail:
            return torch.zeros_like(log_p_full).scatter_(-1, self.ids, on_classes)
        # d log p_tail / dz_v = p_v / p_tail for v outside S
        share = (log_p_full - self.log_p[:, -1:]).exp()
        gradient = torch.where(self.log_p[:, -1:] > -torch.inf, share * on_classes[:, -1:], 0.0)
        return gradient.scatter_(-1, self.ids, on_classes[:, :-1])


def _log_rest(log_probs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """
    Log-probability of all tokens but `ids`, of shape `(N, 1)`.

    Summed over the rest itself: 1 minus the probability of the set would round away once the set holds nearly all.
    """
    return log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)


def top_k_support(log_p: torch.Tensor, log_q: torch.Tensor, spec: DivergenceSpec) -> Support:
    """
    Restrict both distributions to the `spec.topk` most likely tokens of the student or the teacher.

    Without a tail both are renormalised over the set; with one, the rest of the vocabulary is one more class, as in
    SDPO (huggingface.co/papers/2601.20802).

    Args:
        log_p, log_q (`torch.Tensor` of shape `(N, V)`): Log-probabilities of student and teacher.
        spec ([`DivergenceSpec`]): Size, source and kind of the set.
    """
    source = log_p if spec.topk_source == "student" else log_q
    ids = source.topk(spec.topk, dim=-1).indices  # (N, K)
    set_p, set_q = log_p.gather(-1, ids), log_q.gather(-1, ids)
    mass_p, mass_q = set_p.exp().sum(-1), set_q.exp().sum(-1)
    if spec.add_tail:
        set_p = torch.cat([set_p, _log_rest(log_p, ids)], dim=-1)
        set_q = torch.cat([set_q, _log_rest(log_q, ids)], dim=-1)
    else:
        set_p, set_q = set_p.log_softmax(-1), set_q.log_softmax(-1)
    return Support(set_p, set_q, mass_p, mass_q, ids, spec.add_tail)
