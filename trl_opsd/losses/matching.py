# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Losses of hidden states.

Legend: M distilled tokens, H hidden size.
"""

import torch


def feature_matching(student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor, view: int) -> torch.Tensor:
    """
    Weighted sum, over the tokens that a view teaches, of the mean squared difference of the last hidden states, 0-d,
    with gradient to the student's (UniSD, huggingface.co/papers/2605.06597).

    Args:
        student (`torch.Tensor` of shape `(M, H)`): Hidden states.
        teacher (`torch.Tensor` of shape `(K, M, H)`): Those under each view.
        weights (`torch.Tensor` of shape `(K, M)`): Weight of each token under each view; all count.
        view (`int`): The view.
    """
    kind = torch.promote_types(student.dtype, torch.float32)
    distance = (student.to(kind) - teacher[view].to(kind)).square().mean(-1)
    return (weights.sum(0) * (weights[view] != 0) * distance).sum()
