# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Fused linear divergence: the distillation loss from hidden states, without an (N, V) tensor.

Tokens go through the head in chunks. As the weight of each token (mask, normaliser, view) is known beforehand, the
gradient is formed in the forward pass, chunk by chunk, from the closed forms in `trl_opsd.losses`; backward only scales
it. That is 8 NHV floating-point operations for one view, and no product is computed twice.

Legend: N tokens, the first M <= N of them distilled, H hidden size, V vocabulary, K views.
"""

from typing import Any

import torch

from trl_opsd.kernels.forward_pass import LinearDivergenceForward, stat_names
from trl_opsd.kernels.grad_accumulator import GradAccumulator
from trl_opsd.kernels.inputs import LinearDivergenceInputs


def linear_divergence(
    hidden: torch.Tensor, task: LinearDivergenceInputs
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Weighted sum of the distillation losses of all tokens and views, plus the policy loss if there is one.

    Args:
        hidden (`torch.Tensor` of shape `(N, H)`): Student hidden states that predict `task.labels`, the M distilled
            tokens first; gradient flows here.
        task ([`LinearDivergenceInputs`]): The rest.

    Returns:
        The loss, a 0-d tensor, and statistics without gradient: those of [`~trl_opsd.losses.TokenLoss`],
        `teacher_logps` and `teacher_entropy` of shape `(K, M)`, `student_logps` and `student_entropy` of shape `(M,)`,
        in nats at the temperature of `spec`.
    """
    names = stat_names(task.spec)
    weights = task.head.weight, task.head.bias
    loss, *stats = _LinearDivergence.apply(hidden, *weights, task, names, torch.is_grad_enabled())
    return loss, dict(zip(names, stats, strict=True))


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        task: LinearDivergenceInputs,
        names: tuple[str, ...],
        differentiate: bool,
    ) -> tuple[torch.Tensor, ...]:
        needed = [differentiate and needed for needed in ctx.needs_input_grad[:3]]
        sums = GradAccumulator((hidden, weight, bias), needed)
        work = LinearDivergenceForward(hidden.detach(), task, sums, names)
        total, stats = work.run()
        ctx.save_for_backward(*sums.tensors(), work.unit)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        outputs = tuple(stats[name] for name in names)
        ctx.mark_non_differentiable(*outputs)
        return total, *outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        *sums, unit = ctx.saved_tensors
        scale = grad_loss * unit
        scaled = (None if s is None else _scaled(s, scale, dtype) for s, dtype in zip(sums, ctx.dtypes, strict=True))
        return *scaled, None, None, None


def _scaled(gradient: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The gradient times `scale`, a 0-d tensor, in another type."""
    if gradient.device.type != "cpu":  # one pass, and no wait for the value of `scale`
        return torch.mul(gradient, scale, out=torch.empty_like(gradient, dtype=dtype))
    if scale == 1:  # the rule, and the head's gradient is the largest array here: not to be copied
        return gradient.to(dtype)
    return (gradient * scale).to(dtype)
