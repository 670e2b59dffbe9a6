# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Metrics for the log, under `self_distillation/`. Each function does one reduction over the ranks, on every rank.

Legend: B rows, C completion tokens, K views.
"""

import torch
from accelerate import Accelerator

from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.monitoring.leaks import Leak
from trl_opsd.monitoring.names import PREFIX


TAIL_NATS = 2.0  # A gap beyond it means a token e^2 = 7.4 times more or less likely for the teacher

# Statistics that the log names otherwise than the loss does
_LOGGED = {"clipped": "clipped_share", "mass_p": "topk_mass/student", "mass_q": "topk_mass/teacher"}
# Statistics that are not means over views as they are: the log has the gap of the first two
_NOT_OF_VIEWS = ("teacher_logps", "student_logps", "student_entropy")

Number = float | torch.Tensor


def reduce_means(accelerator: Accelerator, sums: dict[str, tuple[Number, Number | None]]) -> dict[str, float]:
    """
    Means over all ranks by name, from local sums and counts, in one reduction. A mean of nothing is left out.

    Args:
        accelerator (`Accelerator`): Reduces over ranks.
        sums (`dict[str, tuple]`): Sum and count by name, numbers or 0-d tensors, the same names on every rank. With
            the count `None` the value is the sum itself.
    """
    values = [value for pair in sums.values() for value in pair if value is not None]
    flat = torch.cat([torch.as_tensor(value, device=accelerator.device).reshape(1) for value in values])
    totals = iter(accelerator.reduce(flat, reduction="sum").tolist())
    reduced = {name: (next(totals), 1 if count is None else next(totals)) for name, (_, count) in sums.items()}
    return {f"{PREFIX}{name}": total / count for name, (total, count) in reduced.items() if count}


def repetition(completion_ids: list[int], n: int = 3) -> float:
    """Share of the n-grams of a completion that occurred in it before, from 0 (all new) towards 1 (a loop)."""
    grams = [tuple(completion_ids[i : i + n]) for i in range(len(completion_ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def generation_metrics(
    accelerator: Accelerator,
    encoded: dict[str, EncodedView],
    completion_ids: list[list[int]],
    skipped: int,
    without_policy: int,
    leaks: list[Leak],
) -> dict[str, float]:
    """
    Metrics of a generation batch: share of rows with a view, views that were dropped, shortened or missed for an error
    of their source, teacher prompt lengths, repetition, share of rows whose advantage a view switches off, and
    shares of rows that give the context away.

    Args:
        accelerator (`Accelerator`): Reduces over ranks.
        encoded (`dict[str, EncodedView]`): Views of the local rows by name.
        completion_ids (`list[list[int]]`): Unpadded completions of the local rows.
        skipped (`int`): Local rows without views because of an error of their source.
        without_policy (`int`): Local rows whose advantage does not count.
        leaks (`list[Leak]`): What each local row gives away.
    """
    rows = len(completion_ids)
    with_view = sum(any(view.weights[row] > 0 for view in encoded.values()) for row in range(rows))
    lengths = [
        len(ids)
        for view in encoded.values()
        for ids, weight in zip(view.prompt_ids, view.weights, strict=True)
        if weight
    ]
    longest = torch.tensor(max(lengths, default=0), device=accelerator.device)
    means = reduce_means(
        accelerator,
        {
            "view_share": (with_view, rows),
            "dropped_views": (sum(view.dropped for view in encoded.values()), None),
            "shortened_views": (sum(view.shortened for view in encoded.values()), None),
            "source_errors": (skipped, None),
            "teacher_prompt_length/mean": (sum(lengths), len(lengths)),
            "repetition": (sum(repetition(ids) for ids in completion_ids), rows),
            "policy_off_share": (without_policy, rows),
            "leak/quotes": (sum(leak.quote is not None for leak in leaks), rows),
            "leak/phrases": (sum(leak.phrase is not None for leak in leaks), rows),
        },
    )
    return {
        f"{PREFIX}teacher_prompt_length/mean": 0.0,  # without any view
        **means,
        f"{PREFIX}teacher_prompt_length/max": float(accelerator.gather(longest).max()),
    }


def mean_gaps(stats: dict[str, torch.Tensor], shares: torch.Tensor) -> torch.Tensor:
    """Mean gap of each row over its distilled tokens, of shape `(B,)`, `nan` where it has none."""
    gap = (stats["teacher_logps"] - stats["student_logps"]) * shares
    return gap.sum((0, 2)) / shares.sum((0, 2))


def token_metrics(
    accelerator: Accelerator, names: list[str], stats: dict[str, torch.Tensor], shares: torch.Tensor
) -> dict[str, float]:
    """
    Metrics of a micro-batch: means of all statistics over the distilled tokens of all ranks, and over views by their
    shares. There are none where nothing was distilled on any rank.

    Args:
        accelerator (`Accelerator`): Reduces over ranks.
        names (`list[str]`): The K view names.
        stats (`dict[str, torch.Tensor]`): Statistics of shape `(K, B, C)`, those of the student `(B, C)`.
        shares (`torch.Tensor` of shape `(K, B, C)`): Share of each view at each token, 0 where it is not distilled.
    """
    distilled = shares > 0
    first = distilled & (distilled.cumsum(-1) == 1)  # first distilled token of each row
    gap = stats["teacher_logps"] - stats["student_logps"]
    values = {_LOGGED.get(name, name): stat for name, stat in stats.items() if name not in _NOT_OF_VIEWS}
    values |= {"gap/mean": gap, "gap/tail": (gap.abs() > TAIL_NATS).float()}
    # Selected, not multiplied: what is not distilled may hold an infinite value, and 0 times that is nan
    per_view = torch.stack([torch.where(distilled, value * shares, 0.0).sum((1, 2)) for value in values.values()])
    tokens = shares.sum()
    sums = {name: (total, tokens) for name, total in zip(values, per_view.sum(1), strict=True)}
    sums["student_entropy"] = (stats["student_entropy"] * shares.sum(0)).sum(), tokens
    sums["first_token_divergence"] = torch.where(first, stats["divergence"], 0.0).sum(), first.sum()
    of_view = torch.where(distilled, stats["divergence"], 0.0).sum((1, 2)), distilled.sum((1, 2))
    sums |= {f"divergence/{name}": pair for name, *pair in zip(names, *of_view, strict=True)}
    return reduce_means(accelerator, sums)
