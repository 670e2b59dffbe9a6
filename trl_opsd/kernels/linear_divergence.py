# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The distillation loss from hidden states, without an (N, V) tensor.

Tokens pass in chunks. As the weight of each token (mask, normaliser, view) is known before the pass, the gradient is
formed in the forward pass, chunk by chunk, from the closed forms in `trl_opsd.losses`; backward only scales it.

Legend: N tokens, H hidden size, V vocabulary, K views, c tokens of a chunk; p student, q teacher.
"""

from typing import Any

import torch

from trl_opsd.kernels.head import Head
from trl_opsd.losses import DivergenceSpec, token_loss


# Entries of one (c, V) float32 block: 2**24 are 64 MiB. A chunk holds about a dozen such blocks at a time.
_BLOCK_ENTRIES = 2**24

VIEW_STATS = ("loss", "divergence", "teacher_logps", "teacher_entropy", "clipped", "mass_p", "mass_q")
STUDENT_STATS = ("student_logps", "student_entropy")


def linear_divergence(
    hidden: torch.Tensor,
    head: Head,
    teacher_hidden: torch.Tensor,
    teacher_head: Head,
    labels: torch.Tensor,
    weights: torch.Tensor,
    spec: DivergenceSpec,
    old_logps: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    Weighted sum of the distillation losses of all tokens and views.

    Args:
        hidden (`torch.Tensor` of shape `(N, H)`): Student hidden states that predict `labels`; gradient flows here.
        head ([`Head`]): Student head; gradient flows to its weight and bias where they require it.
        teacher_hidden (`torch.Tensor` of shape `(K, N, H')`): Teacher hidden states of each view, constant.
        teacher_head ([`Head`]): Teacher head, constant.
        labels (`torch.Tensor` of shape `(N,)`): Sampled tokens.
        weights (`torch.Tensor` of shape `(K, N)`): Factor on the loss of each token under each view.
        spec ([`DivergenceSpec`]): What is compared and how.
        old_logps (`torch.Tensor` of shape `(N,)`, *optional*): Log-probabilities of `labels` when they were sampled,
            for `spec.is_clip`.

    Returns:
        The loss, a 0-d tensor, and statistics without gradient: `loss`, `divergence`, `teacher_logps`,
        `teacher_entropy`, `clipped`, `mass_p`, `mass_q` of shape `(K, N)`, and `student_logps`, `student_entropy` of
        shape `(N,)`, in nats at the temperature of `spec`.
    """
    differentiate = torch.is_grad_enabled()
    outputs = _LinearDivergence.apply(
        hidden,
        head.weight,
        head.bias,
        head,
        teacher_hidden,
        teacher_head,
        labels,
        weights,
        spec,
        old_logps,
        differentiate,
    )
    return outputs[0], dict(zip(VIEW_STATS + STUDENT_STATS, outputs[1:], strict=True))


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        head: Head,
        teacher_hidden: torch.Tensor,
        teacher_head: Head,
        labels: torch.Tensor,
        weights: torch.Tensor,
        spec: DivergenceSpec,
        old_logps: torch.Tensor | None,
        differentiate: bool,
    ) -> tuple[torch.Tensor, ...]:
        (k, n), v = weights.shape, weight.shape[0]
        student, teacher = head.prepared(hidden), teacher_head.prepared(hidden)
        need = [differentiate and needed for needed in ctx.needs_input_grad[:3]]
        accumulate = torch.promote_types(weight.dtype, torch.float32)  # half-precision sums over chunks would round
        # The weights are of the size of 1 / tokens, where float16 has few digits left: gradients are formed at the size
        # of 1, and backward multiplies by the rest, with the loss scaler's factor in it
        unit = weights.abs().max().clamp(min=torch.finfo(weights.dtype).tiny) if n else weights.new_ones(())
        grads = (
            torch.zeros_like(hidden, dtype=accumulate) if need[0] else None,
            torch.zeros_like(weight, dtype=accumulate) if need[1] else None,
            torch.zeros_like(bias, dtype=accumulate) if need[2] else None,
        )
        stats = {name: weights.new_zeros((k, n)) for name in VIEW_STATS}
        stats |= {name: weights.new_zeros(n) for name in STUDENT_STATS}
        total = weights.new_zeros(())
        size = max(1, _BLOCK_ENTRIES // v)
        for start in range(0, n, size):
            rows = slice(start, min(start + size, n))
            logits = student.logits(hidden[rows])  # (c, V)
            log_p = (logits / spec.temperature).log_softmax(-1)
            row_weights = weights[:, rows]
            _student_stats(stats, rows, log_p, labels)
            if spec.is_clip is not None and old_logps is not None:
                # A token whose log-probability the sampler could not give is `nan`: no correction
                log_ratio = (stats["student_logps"][rows] - old_logps[rows]).nan_to_num(0.0)
                ratio = log_ratio.clamp(-20.0, 20.0).exp()
                row_weights = row_weights * ratio.clamp(max=spec.is_clip)
            gradient = torch.zeros_like(logits) if any(need) else None
            for view in range(k):
                log_q = (teacher.logits(teacher_hidden[view, rows]) / spec.temperature).log_softmax(-1)
                result = token_loss(log_p, log_q, spec)
                _view_stats(stats, view, rows, log_q, labels, result)
                total += _weighted(result.loss, row_weights[view]).sum()
                if gradient is not None:
                    factor = row_weights[view] / (unit * spec.temperature)
                    gradient += _weighted(result.gradient, factor.unsqueeze(-1))
            if gradient is not None:
                _accumulate(grads, gradient, logits, hidden, rows, student)
        ctx.save_for_backward(*grads, unit)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        outputs = tuple(stats[name] for name in VIEW_STATS + STUDENT_STATS)
        ctx.mark_non_differentiable(*outputs)
        return total, *outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        *grads, unit = ctx.saved_tensors
        scale = grad_loss * unit
        scaled = (
            None if grad is None else (grad * scale).to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)
        )
        return *scaled, *(None,) * 8


def _weighted(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`values * weights` with 0 where the weight is 0, also against an infinite value."""
    return torch.where(weights != 0, values * weights, 0.0)


def _entropy(log_probs: torch.Tensor) -> torch.Tensor:
    """Entropy of each row of log-probabilities, 0 log 0 counting as 0."""
    probs = log_probs.exp()
    return -torch.where(probs > 0, probs * log_probs, 0.0).sum(-1)


def _student_stats(stats: dict[str, torch.Tensor], rows: slice, log_p: torch.Tensor, labels: torch.Tensor) -> None:
    stats["student_logps"][rows] = log_p.gather(-1, labels[rows].unsqueeze(-1)).squeeze(-1)
    stats["student_entropy"][rows] = _entropy(log_p)


def _view_stats(
    stats: dict[str, torch.Tensor], view: int, rows: slice, log_q: torch.Tensor, labels: torch.Tensor, result: Any
) -> None:
    for name in ("loss", "divergence", "clipped", "mass_p", "mass_q"):
        stats[name][view, rows] = getattr(result, name)
    stats["teacher_logps"][view, rows] = log_q.gather(-1, labels[rows].unsqueeze(-1)).squeeze(-1)
    stats["teacher_entropy"][view, rows] = _entropy(log_q)


def _accumulate(
    grads: tuple[torch.Tensor | None, ...],
    gradient: torch.Tensor,
    logits: torch.Tensor,
    hidden: torch.Tensor,
    rows: slice,
    head: Head,
) -> None:
    """Add one chunk's gradient on the logits to the gradients of hidden states, weight and bias."""
    grad_hidden, grad_weight, grad_bias = grads
    gradient = head.back_through_transform(gradient, logits)
    low = gradient.to(head.weight.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        if grad_hidden is not None:
            grad_hidden[rows] = (low @ head.weight).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight += low.T @ hidden[rows].to(low.dtype)
    if grad_bias is not None:
        grad_bias += gradient.sum(0)
