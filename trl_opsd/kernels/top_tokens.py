# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Likeliest tokens of student and teacher, each with the log-probabilities of both.

Legend: R tokens that are looked at, H hidden size, K views, k tokens of a list.
"""

from collections.abc import Iterator, Sequence

import torch

from trl_opsd.kernels.head import Head


TOP = "top/"  # beginning of the names of what [`top_tokens`] gives
CHUNK = 64  # tokens whose logits are in memory at once


@torch.no_grad()
def top_tokens(
    hidden: torch.Tensor,
    head: Head,
    teacher_hidden: torch.Tensor,
    teacher_heads: Sequence[Head],
    count: int,
    temperature: float,
    teacher_temperature: float,
) -> dict[str, torch.Tensor]:
    """
    The `count` likeliest next tokens under the student and under each view's teacher.

    Args:
        hidden (`torch.Tensor` of shape `(R, H)`): Student hidden states.
        head ([`Head`]): Student head.
        teacher_hidden (`torch.Tensor` of shape `(K, R, H')`): Teacher hidden states of each view.
        teacher_heads (`Sequence[Head]` of length K): Teacher head of each view.
        count (`int`): k.
        temperature, teacher_temperature (`float`): Of the student's and of the teachers' distributions.

    Returns:
        By name, log-probabilities in nats: `top/student/ids` and `top/student/p` of shape `(R, k)`, `top/student/q` of
        shape `(K, R, k)`, and `top/teacher/ids`, `/p` and `/q`, all of shape `(K, R, k)`; p student, q teacher.
    """
    head, teacher_heads = head.prepared(hidden), [one.prepared(hidden) for one in teacher_heads]
    parts = [
        _of_chunk(hidden[rows], head, teacher_hidden[:, rows], teacher_heads, count, temperature, teacher_temperature)
        for rows in _chunks(len(hidden))
    ]
    return {f"{TOP}{name}": torch.cat([part[name] for part in parts], dim=-2) for name in parts[0]}


def _chunks(tokens: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, max(tokens, 1), CHUNK))


def _of_chunk(
    hidden: torch.Tensor,
    head: Head,
    teacher_hidden: torch.Tensor,
    teacher_heads: Sequence[Head],
    count: int,
    temperature: float,
    teacher_temperature: float,
) -> dict[str, torch.Tensor]:
    own, own_sum = _logits(hidden, head, temperature)
    p, ids = own.topk(count, dim=-1)
    found: dict[str, list[torch.Tensor]] = {"student/q": [], "teacher/ids": [], "teacher/p": [], "teacher/q": []}
    for states, teacher in zip(teacher_hidden, teacher_heads, strict=True):
        other, other_sum = _logits(states, teacher, teacher_temperature)
        q, wanted = other.topk(count, dim=-1)
        values = other.gather(-1, ids) - other_sum, wanted, own.gather(-1, wanted) - own_sum, q - other_sum
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    stacked = {name: torch.stack(values) for name, values in found.items() if values}
    return {"student/ids": ids, "student/p": p - own_sum, **stacked}


def _logits(hidden: torch.Tensor, head: Head, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tempered logits `(R, V)` and the logarithm of their normaliser, `(R, 1)`: log-probabilities are wanted at a few
    entries alone."""
    logits = head.transform(head.project(hidden))
    logits = logits if temperature == 1.0 else logits / temperature
    return logits, logits.logsumexp(-1, keepdim=True)
