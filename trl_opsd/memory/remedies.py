# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Remedies of a run that does not fit: the changes that make it fit, those first that change the training least."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from trl_opsd.memory.formulas import Run
from trl_opsd.memory.verdict import BARELY, NO, YES, Verdict, judge


MOST = 3  # remedies that are told
LORA_RANK = 64
# Costs: below 100 the training stays the same and may only take longer
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_ENGINES = {"zero2": 5, "zero3": 6, "fsdp2": 7}
_CHANGES_TRAINING = 100


class Change(NamedTuple):
    """
    One change of a run.

    Args:
        subject (`str`): What is changed: changes of one subject exclude each other.
        cost (`float`): How much it costs; from 100 on, it changes what is trained.
        fields (`dict[str, Any]`): Fields of [`Run`] with their new values.
    """

    subject: str
    cost: float
    fields: dict[str, Any]


class Remedy(NamedTuple):
    """
    Changes that together make a run fit.

    Args:
        changes (`tuple[Change, ...]`): The changes.
        run ([`Run`]): The run with them.
        verdict ([`Verdict`]): The verdict on it.
    """

    changes: tuple[Change, ...]
    run: Run
    verdict: Verdict

    @property
    def changes_training(self) -> bool:
        return any(change.cost >= _CHANGES_TRAINING for change in self.changes)


def remedies(run: Run) -> list[Remedy]:
    """
    Few changes that make a run fit with room, or barely where nothing better is found.

    Args:
        run ([`Run`]): A run that does not fit, or only barely.

    Returns:
        `list[Remedy]`: At most three, the cheapest first. None is another one with more changes, and none has more
        changes than the first.
    """
    barely: list[Remedy] = []
    found: list[Remedy] = []
    for changes in _combinations(run):
        subjects = {change.subject for change in changes}
        if any(subjects >= {change.subject for change in one.changes} for one in found):
            continue
        if found and len(changes) > len(found[0].changes):
            continue
        try:
            changed = replace(run, **{name: value for change in changes for name, value in change.fields.items()})
        except ValueError:  # which exclude each other, such as an offload and an engine that shards
            continue
        verdict = judge(changed)
        if verdict.fits == YES:
            found.append(Remedy(changes, changed, verdict))
        elif verdict.fits == BARELY and not barely:
            barely.append(Remedy(changes, changed, verdict))
        if len(found) == MOST:
            break
    return found or (barely if judge(run).fits == NO else [])


def _combinations(run: Run) -> Iterator[tuple[Change, ...]]:
    """Combinations of changes, the cheapest first."""
    combined = [tuple(filter(None, one)) for one in product(*([None, *changes] for changes in _subjects(run)))]
    yield from sorted(filter(None, combined), key=lambda one: (sum(change.cost for change in one), len(one)))


def _subjects(run: Run) -> list[list[Change]]:
    """Changes that a run allows, by subject."""
    found = []
    if run.vllm and not run.sleep:
        found.append([Change("sleep", 1, {"sleep": True})])
    if run.vllm:
        shares = [share for share in _SHARES if share != run.utilization]
        near = run.utilization or max(_SHARES)  # the more, the more rollouts at once
        found.append([Change("utilization", 2 + abs(share - near), {"utilization": share}) for share in shares])
    if not run.checkpointing:
        found.append([Change("checkpointing", 3, {"checkpointing": True})])
    rows = []
    while run.rows % 2 ** (len(rows) + 1) == 0:
        by = 2 ** (len(rows) + 1)
        fields = {"rows": run.rows // by, "accumulation": run.accumulation * by}
        rows.append(Change("rows", 4 + len(rows), fields))
    found.append(rows)
    if run.gpus > 1:
        found.append([Change("engine", cost, {"engine": name}) for name, cost in _ENGINES.items()
                      if name != run.engine])  # fmt: skip
    if run.vllm:
        sizes = [size for size in (2, 4, 8) if run.gpus % size == 0 and size > run.tensor_parallel]
        found.append([Change("tensor_parallel", 8 + size / 8, {"tensor_parallel": size}) for size in sizes])
        found.append([Change("vllm", 30, {"vllm": False})])
    if run.gather and not run.server:  # read by transformers' generation alone
        found.append([Change("gather", 12, {"gather": False})])
    if run.copied_teacher and not (run.lora or run.sharded or run.offload):
        found.append([Change("offload", 9, {"offload": True})])
    if run.iterations > 1 and run.teacher != "live":
        found.append([Change("iterations", _CHANGES_TRAINING, {"iterations": 1})])
    if not run.lora:
        found.append([Change("lora", 2 * _CHANGES_TRAINING, {"lora": LORA_RANK, "dtype": "bfloat16"})])
    if run.teacher != "live":
        found.append([Change("teacher", 4 * _CHANGES_TRAINING, {"teacher": "live"})])
    return found
