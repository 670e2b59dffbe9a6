# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Numbers for the log, under `self_distillation/`. Each function does one reduction over the ranks, on every rank.

Legend: B rows, C completion tokens, K views.
"""

import torch
from accelerate import Accelerator

from trl_opsd.batches.encoded_view import EncodedView
from trl_opsd.monitoring.leaks import Leak
from trl_opsd.monitoring.names import PREFIX


TAIL_NATS = 2.0  # A gap beyond it means a token e^2 = 7.4 times more or less likely for the teacher

_SUMS = (
    "loss",
    "divergence",
    "gap/mean",
    "gap/tail",
    "teacher_entropy",
    "clipped_share",
    "topk_mass/student",
    "topk_mass/teacher",
)


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
    dropped, shortened = (sum(getattr(v, name) for v in encoded.values()) for name in ("dropped", "shortened"))
    loops = sum(repetition(ids) for ids in completion_ids)
    counts = [rows, with_view, dropped, shortened, skipped, len(lengths), sum(lengths), loops, without_policy]
    counts += [sum(leak.quote is not None for leak in leaks), sum(leak.phrase is not None for leak in leaks)]
    sums = torch.tensor(counts, device=accelerator.device)
    longest = torch.tensor(max(lengths, default=0), device=accelerator.device)
    sums = accelerator.reduce(sums, reduction="sum").tolist()
    rows, with_view, dropped, shortened, skipped, views, length, loops, without_policy, quotes, phrases = sums
    return {
        f"{PREFIX}view_share": with_view / rows,
        f"{PREFIX}dropped_views": dropped,
        f"{PREFIX}shortened_views": shortened,
        f"{PREFIX}source_errors": skipped,
        f"{PREFIX}teacher_prompt_length/mean": length / max(views, 1),
        f"{PREFIX}teacher_prompt_length/max": float(accelerator.gather(longest).max()),
        f"{PREFIX}repetition": loops / rows,
        f"{PREFIX}policy_off_share": without_policy / rows,
        f"{PREFIX}leak/quotes": quotes / rows,
        f"{PREFIX}leak/phrases": phrases / rows,
    }


def mean_gaps(stats: dict[str, torch.Tensor], shares: torch.Tensor) -> torch.Tensor:
    """Mean gap of each row over its distilled tokens, of shape `(B,)`, `nan` where it has none."""
    gap = (stats["teacher_logps"] - stats["student_logps"]) * shares
    return gap.sum((0, 2)) / shares.sum((0, 2))


def token_metrics(
    accelerator: Accelerator, names: list[str], stats: dict[str, torch.Tensor], shares: torch.Tensor, topk: bool
) -> dict[str, float]:
    """
    Metrics of a micro-batch, means over the distilled tokens of all ranks (and over views, by their shares).

    Args:
        accelerator (`Accelerator`): Reduces over ranks.
        names (`list[str]`): The K view names.
        stats (`dict[str, torch.Tensor]`): Statistics of shape `(K, B, C)`, those of the student `(B, C)`.
        shares (`torch.Tensor` of shape `(K, B, C)`): Share of each view at each token, 0 where it is not distilled.
        topk (`bool`): Whether there is a top-k set, to report its mass.
    """
    gap = stats["teacher_logps"] - stats["student_logps"]
    values = (
        stats["loss"], stats["divergence"], gap, (gap.abs() > TAIL_NATS).float(), stats["teacher_entropy"],
        stats["clipped"], stats["mass_p"], stats["mass_q"],
    )  # fmt: skip
    first = (shares > 0) & ((shares > 0).cumsum(-1) == 1)  # first distilled token of each row
    # Selected, not multiplied: what is not distilled may hold an infinite value, and 0 times that is nan
    per_view = torch.stack(
        [
            *(torch.where(shares > 0, value * shares, 0.0).sum((1, 2)) for value in values),
            (shares > 0).sum((1, 2)).float(),
        ]
    )
    divergence_of_view = torch.where(shares > 0, stats["divergence"], 0.0).sum((1, 2))
    flat = torch.cat(
        [
            per_view.sum(1),
            shares.sum().reshape(1),
            (stats["student_entropy"] * shares.sum(0)).sum().reshape(1),
            torch.where(first, stats["divergence"], 0.0).sum().reshape(1),
            first.sum().float().reshape(1),
            divergence_of_view,
            per_view[-1],
        ]
    )
    totals = accelerator.reduce(flat, reduction="sum").tolist()
    return _named(totals, names, topk)


def _named(totals: list[float], names: list[str], topk: bool) -> dict[str, float]:
    """Means by name from the reduced sums of [`token_metrics`]; none where nothing was distilled on any rank."""
    sums, rest = totals[: len(_SUMS)], totals[len(_SUMS) + 1 :]
    tokens, student_entropy, first_sum, first_count = rest[:4]
    if tokens == 0:
        return {}
    metrics = {name: value / tokens for name, value in zip(_SUMS, sums, strict=True)}
    if not topk:
        del metrics["topk_mass/student"], metrics["topk_mass/teacher"]
    metrics["student_entropy"] = student_entropy / tokens
    metrics["first_token_divergence"] = first_sum / max(first_count, 1.0)
    per_view = zip(names, rest[4 : 4 + len(names)], rest[4 + len(names) :], strict=True)
    metrics |= {f"divergence/{name}": value / count for name, value, count in per_view if count}
    return {f"{PREFIX}{name}": value for name, value in metrics.items()}
