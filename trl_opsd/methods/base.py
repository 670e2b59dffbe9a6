# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
What a method is made of: values of the config, a source, and functions at the four places where the loss can differ.

Legend: B rows of a micro-batch, C completion tokens, K views, M distilled tokens, V vocabulary; p student, q teacher; y
the sampled token.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from trl_opsd.losses import Target, Weigh


@dataclass(frozen=True)
class Signals:
    """
    What is known of a micro-batch when the advantages of its tokens are made. Nothing of it has a gradient.

    Args:
        views (`list[str]`): Names of the K views.
        teacher_logps, teacher_entropy (`torch.Tensor` of shape `(K, B, C)`): log q(y) and entropy of q under each view,
            0 where a token is not distilled.
        student_logps, student_entropy (`torch.Tensor` of shape `(B, C)`): log p(y) and entropy of p.
        shares (`torch.Tensor` of shape `(K, B, C)`): Share of each view at each token, 0 where it does not teach it.
        mask (`torch.Tensor` of shape `(B, C)`): 1 at distilled tokens.
        advantages (`torch.Tensor` of shape `(B,)`): The verifier's.
        success, group_success (`torch.Tensor` of shape `(B,)`): Whether the rollout, and any rollout of its group, had
            success, as 0 or 1.
        progress (`float`): Share of the training steps that are done.
        step (`int`): Optimizer steps that are done.
        options (`dict[str, float]`): The method's own.
    """

    views: list[str]
    teacher_logps: torch.Tensor
    teacher_entropy: torch.Tensor
    student_logps: torch.Tensor
    student_entropy: torch.Tensor
    shares: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor
    success: torch.Tensor
    group_success: torch.Tensor
    progress: float
    step: int
    options: dict[str, Any]

    @property
    def gap(self) -> torch.Tensor:
        """log q(y) - log p(y), `(B, C)`, the mean over the views that teach the token, 0 where none does."""
        return (self.shares * (self.teacher_logps - self.student_logps)).sum(0)

    def of(self, name: str) -> int:
        """Number of a view among the K. An error names what is missing."""
        if name not in self.views:
            raise ValueError(f"This method needs a view named {name!r}; the source gave {self.views}.")
        return self.views.index(name)


@dataclass(frozen=True)
class Method:
    """
    One paper's method.

    Args:
        name (`str`): Its name in `OPSDConfig(method=...)`.
        title, paper (`str`): Of the paper, with its arXiv number.
        label (`str`): What is implemented: `"paper"`, `"code"` or `"proposed reading"`.
        defaults (`dict[str, Any]`): Values of [`OPSDConfig`] where the user gives none.
        options (`dict[str, Any]`): Its own options with their defaults, which `method_options` changes.
        needs (`str`): What a user must bring: a reward, a column, views of some name.
        advantages (`Callable[[Signals], torch.Tensor]`, *optional*): Advantages of shape `(B, C)` for TRL's loss, with
            `distillation_mode="sampled_token"`.
        target (`Callable[..., Target]`, *optional*): From the names of the views, the method's options and the progress
            to what the student is pulled to.
        weigh (`Callable[..., Weigh]`, *optional*): From the same to a factor on the loss of each token.
        rows (`Callable[..., torch.Tensor]`, *optional*): From the success of rollouts and groups, `(B,)` each, to a
            factor on the distillation of each row, `(B,)`.
        positions (`Callable[..., torch.Tensor]`, *optional*): From a token's place in its completion, `(B, C)` in
            (0, 1), to a factor.
    """

    name: str
    title: str
    paper: str
    label: str
    defaults: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = ""
    advantages: Callable[[Signals], torch.Tensor] | None = None
    target: Callable[..., Target] | None = None
    weigh: Callable[..., Weigh] | None = None
    rows: Callable[..., torch.Tensor] | None = None
    positions: Callable[..., torch.Tensor] | None = None
