# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Metrics for the log, under `self_distillation/`, as sums and counts, so that what is logged is a mean over all that was
seen since the last log and not one of batches' means.

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
# Sum and count by name in the log, over all ranks. With the count `None`, the sum is an amount of a generation batch
Sums = dict[str, tuple[float, float | None]]


def reduce_sums(accelerator: Accelerator, sums: dict[str, tuple[Number, Number | None]]) -> Sums:
    """
    Sums and counts over all ranks from local ones, in one reduction. A count of 0 is left out, as it has no mean.

    Args:
        accelerator (`Accelerator`): Reduces over ranks.
        sums (`dict[str, tuple]`): Sum and count by name, numbers or 0-d tensors, the same names on every rank.
    """
    values = [value for pair in sums.values() for value in pair if value is not None]
    kind = {"device": accelerator.device, "dtype": torch.float32}  # a rank without rows has whole numbers alone
    flat = torch.cat([torch.as_tensor(value, **kind).reshape(1) for value in values])
    totals = iter(accelerator.reduce(flat, reduction="sum").tolist())
    reduced = {name: (next(totals), None if count is None else next(totals)) for name, (_, count) in sums.items()}
    return {f"{PREFIX}{name}": pair for name, pair in reduced.items() if pair[1] != 0}


class LoggedSums:
    """Sums and counts behind the means that are in TRL's lists of metrics, from one log to the next."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}

    def add(self, mode: str, sums: Sums, logged: dict[str, list[float]]) -> None:
        """
        Add those of a batch, and put the means so far into TRL's lists. An amount is logged as its mean over generation
        batches in training, and as its sum in an evaluation.

        Args:
            mode (`str`): `"train"` or `"eval"`.
            sums (`Sums`): Of the batch.
            logged (`dict[str, list[float]]`): TRL's lists. One that a log has emptied begins a new sum.
        """
        kept = self.kept[mode]
        for name, (total, count) in sums.items():
            before, counted = kept[name] if name in kept and logged.get(name) else (0.0, 0.0)
            if count is None:
                count = 0.0 if mode == "eval" and counted else 1.0
            kept[name] = [before + total, counted + count]
            logged[name] = [kept[name][0] / kept[name][1] if kept[name][1] else 0.0]

    def state(self) -> dict[str, dict[str, list[float]]]:
        """The sums, the same on every process, for a checkpoint between two logs. Empty before the first batch."""
        return {mode: {name: list(pair) for name, pair in kept.items()} for mode, kept in self.kept.items() if kept}

    def restore(self, state: dict[str, dict[str, list[float]]]) -> None:
        """Restore what [`state`] returned."""
        self.kept |= {mode: {name: list(pair) for name, pair in kept.items()} for mode, kept in state.items()}


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
) -> tuple[Sums, dict[str, float]]:
    """
    Metrics of a generation batch: share of rows with a view, views that were dropped, shortened or missed for an error
    of their source, teacher prompt lengths, repetition, share of rows whose advantage a view switches off, and
    shares of rows that give the context away. A collective.

    Args:
        accelerator (`Accelerator`): Reduces over ranks.
        encoded (`dict[str, EncodedView]`): Views of the local rows by name.
        completion_ids (`list[list[int]]`): Unpadded completions of the local rows.
        skipped (`int`): Local rows without views because of an error of their source.
        without_policy (`int`): Local rows whose advantage does not count.
        leaks (`list[Leak]`): What each local row gives away.

    Returns:
        Sums and counts, and largest values, by name.
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
    sums = reduce_sums(
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
    without_view = {f"{PREFIX}teacher_prompt_length/mean": (0.0, 0.0)}  # is logged as 0
    longest = float(accelerator.gather(longest).max())
    return without_view | sums, {f"{PREFIX}teacher_prompt_length/max": longest}


def mean_gaps(stats: dict[str, torch.Tensor], shares: torch.Tensor) -> torch.Tensor:
    """Mean gap of each row over its distilled tokens, of shape `(B,)`, `nan` where it has none."""
    gap = (stats["teacher_logps"] - stats["student_logps"]) * shares
    return gap.sum((0, 2)) / shares.sum((0, 2))


def token_sums(
    names: list[str], stats: dict[str, torch.Tensor], shares: torch.Tensor
) -> dict[str, tuple[Number, Number | None]]:
    """
    Local sums and counts of a micro-batch for [`reduce_sums`]: of all statistics over the distilled tokens, and over
    views by their shares.

    Args:
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
    return sums
