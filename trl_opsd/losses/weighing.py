# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Factors on the loss of a token, from what the pass over the vocabulary knows of it.

Legend: t tokens, K views; p student, q teacher; y the sampled token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenStats:
    """
    What is known of some tokens, without gradient, in nats at the temperature of the distillation.

    Args:
        teacher_logps, teacher_entropy (`torch.Tensor` of shape `(K, t)`): log q(y) and entropy of q under each view.
        student_logps, student_entropy (`torch.Tensor` of shape `(t,)`): log p(y) and entropy of p.
    """

    teacher_logps: torch.Tensor
    teacher_entropy: torch.Tensor
    student_logps: torch.Tensor
    student_entropy: torch.Tensor


# From the statistics to factors of shape `(t,)` or `(K, t)`
Weigh = Callable[[TokenStats], torch.Tensor]
