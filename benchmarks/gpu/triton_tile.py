# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Yardstick of the compiled elementwise pass: the same pass over a tile as one Triton kernel written by hand.

One program takes one token, and its row of V logits of each side in blocks. It goes over the row twice for the forward
and the reverse KL, whose sums are known from the first pass, and three times for the JS divergence. It is for measuring
alone: one view, no temperature, top-k set or clip.

Legend: t tokens, V vocabulary; p student, q teacher, m = (1 - beta) p + beta q.
"""

import torch
import triton
import triton.language as tl


KINDS = {"forward_kl": 0, "reverse_kl": 1, "jsd": 2}
STATISTICS = ("student_logps", "student_entropy", "teacher_logps", "teacher_entropy", "divergence")
BLOCK, WARPS = 4096, 8
WIDEST_GAP = tl.constexpr(80.0)  # of log-probabilities: beyond it exp would overflow


@triton.jit
def _log1p(x):
    """log(1 + x) without losing digits near 0 (Goldberg, 1991)."""
    u = 1 + x
    return tl.where(u == 1, x, tl.log(u) * x / tl.where(u == 1, 1.0, u - 1))


@triton.jit
def _expm1(x):
    """exp(x) - 1 likewise."""
    u = tl.exp(x)
    d = u - 1
    return tl.where(u == 1, x, tl.where(d == -1, -1.0, d * x / tl.where(u == 1, 1.0, tl.log(u))))


@triton.jit
def _load(row, columns, inside):
    return tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _online(logits, inside, greatest):
    """Next running maximum, factor on the sums so far, and exponentials of a block relative to that maximum."""
    following = tl.maximum(greatest, tl.max(tl.where(inside, logits, -float("inf")), axis=0))
    return following, tl.exp(greatest - following), tl.where(inside, tl.exp(logits - following), 0.0)


@triton.jit
def _jsd(log_p, log_q, p, q, beta):
    """Summands of the JS divergence and its slopes, p times the derivative by log p, of which p is not yet taken."""
    gap = tl.minimum(tl.maximum(log_q - log_p, -WIDEST_GAP), WIDEST_GAP)
    log_m_over_p = _log1p(_expm1(gap) * beta)
    slopes = p * log_m_over_p * (beta - 1.0)
    return q * (gap - log_m_over_p) * beta + slopes, slopes


@triton.jit
def _tile_kernel(
    student_ptr, teacher_ptr, labels_ptr, stats_ptr, tokens, weight, beta,
    V: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    student, teacher = student_ptr + token * V, teacher_ptr + token * V

    # First pass: of each side the maximum, the sum of exponentials and that of exponentials times logits; under the
    # exponentials of each side the sum of the differences of the logits
    p_max, q_max = tl.full((), -float("inf"), tl.float32), tl.full((), -float("inf"), tl.float32)
    p_sum, p_dot, p_gap = tl.zeros((), tl.float32), tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    q_sum, q_dot, q_gap = tl.zeros((), tl.float32), tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < V
        x, y = _load(student, columns, inside), _load(teacher, columns, inside)
        gap = tl.where(inside, y - x, 0.0)
        p_max, factor, e = _online(x, inside, p_max)
        p_sum = p_sum * factor + tl.sum(e, axis=0)
        p_dot = p_dot * factor + tl.sum(e * x, axis=0)
        p_gap = p_gap * factor + tl.sum(e * gap, axis=0)
        q_max, factor, e = _online(y, inside, q_max)
        q_sum = q_sum * factor + tl.sum(e, axis=0)
        q_dot = q_dot * factor + tl.sum(e * y, axis=0)
        q_gap = q_gap * factor + tl.sum(e * gap, axis=0)
    p_log_z, q_log_z = p_max + tl.log(p_sum), q_max + tl.log(q_sum)

    # Divergence, and the sum of the slopes, which the derivative of log p takes off in proportion to p
    divergence, slope_sum = tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    if KIND == 0:
        divergence = q_gap / q_sum - q_log_z + p_log_z
    elif KIND == 1:
        divergence = q_log_z - p_log_z - p_gap / p_sum
        slope_sum = divergence
    else:
        for start in range(0, V, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < V
            log_p, log_q = _load(student, columns, inside) - p_log_z, _load(teacher, columns, inside) - q_log_z
            summands, slopes = _jsd(log_p, log_q, tl.exp(log_p), tl.exp(log_q), beta)
            divergence += tl.sum(tl.where(inside, summands, 0.0), axis=0)
            slope_sum += tl.sum(tl.where(inside, slopes, 0.0), axis=0)

    label = tl.load(labels_ptr + token)
    stats = stats_ptr + token
    tl.store(stats, tl.load(student + label).to(tl.float32) - p_log_z)
    tl.store(stats + tokens, p_log_z - p_dot / p_sum)
    tl.store(stats + 2 * tokens, tl.load(teacher + label).to(tl.float32) - q_log_z)
    tl.store(stats + 3 * tokens, q_log_z - q_dot / q_sum)
    tl.store(stats + 4 * tokens, divergence)

    # Last pass: the gradient takes the place of the student's logits
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < V
        log_p, log_q = _load(student, columns, inside) - p_log_z, _load(teacher, columns, inside) - q_log_z
        p, q = tl.exp(log_p), tl.exp(log_q)
        if KIND == 0:
            gradient = p - q
        elif KIND == 1:
            gradient = p * (log_p - log_q - slope_sum)
        else:
            _, slopes = _jsd(log_p, log_q, p, q, beta)
            gradient = slopes - p * slope_sum
        tl.store(student + columns, (gradient * weight).to(student_ptr.dtype.element_ty), mask=inside)


def divergence_tile(
    raw: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, weight: float, kind: str, beta: float = 0.5
) -> dict[str, torch.Tensor]:
    """
    Statistics of the tokens of a tile, `(t,)` each; the gradient of their loss takes the place of the student's logits.

    Args:
        raw (`torch.Tensor` of shape `(t, V)`): Logits of the student, contiguous, written over.
        teacher (`torch.Tensor` of shape `(t, V)`): Logits of the teacher, contiguous.
        labels (`torch.Tensor` of shape `(t,)`): Sampled tokens.
        weight (`float`): Factor on the loss of each token.
        kind (`str`): One of `KINDS`.
        beta (`float`): Share of the teacher in the mixture of the JS divergence.
    """
    tokens, v = raw.shape
    stats = torch.empty(len(STATISTICS), tokens, dtype=torch.float32, device=raw.device)
    _tile_kernel[(tokens,)](
        raw, teacher, labels, stats, tokens, weight, beta, V=v, KIND=KINDS[kind], BLOCK=BLOCK, num_warps=WARPS
    )
    return dict(zip(STATISTICS, stats, strict=True))
