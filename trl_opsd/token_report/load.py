# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Records of a run, read back for a report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_opsd.monitoring.json_lines import read as read_lines
from trl_opsd.token_report.record import FOLDER, PROBE, STEP, Line, read, steps_of


# Series of groups: the rollouts of each step; those of the probe, after each step; those of each checkpoint
STEPS, PROBED, CHECKPOINTS = "each step's rollouts", "the probe", "checkpoints"


@dataclass(frozen=True)
class Group:
    """
    Rollouts that are shown together: those of a step, or of a checkpoint.

    Args:
        label (`str`): Its name, such as `"step 4"`.
        head (`dict`): First line of their record; of a checkpoint without `step`.
        rollouts (`list[dict]`): Its other lines.
        same_weights (`bool`): Whether their teacher has the student's weights, for the self-checks.
        series (`str`): Series to which it belongs: `STEPS`, or one whose groups answer the same prompts.
    """

    label: str
    head: Line
    rollouts: list[Line]
    same_weights: bool = False
    series: str = STEPS


@dataclass(frozen=True)
class RunLog:
    """
    Numbers and settings of a run beside its records.

    Args:
        name (`str`): Name of its folder.
        metrics (`list[dict]`): Lines of `metrics.jsonl`.
        warnings (`list[dict]`): Lines of `warnings.jsonl`.
        options (`dict[str, Any]`): Options from `run.json`.
    """

    name: str
    metrics: list[Line] = field(default_factory=list)
    warnings: list[Line] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


def load_log(folder: Path) -> RunLog:
    """Numbers and settings of a run; what is not there stays empty."""
    path = folder / "run.json"
    try:
        options = json.loads(path.read_text(encoding="utf-8"))["options"] if path.is_file() else {}
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no settings file of a run: {error}") from error
    return RunLog(
        name=folder.resolve().name,
        metrics=read_lines(folder / "metrics.jsonl"),
        warnings=read_lines(folder / "warnings.jsonl"),
        options={name: one["value"] for name, one in options.items() if isinstance(one, dict) and "value" in one},
    )


def load_groups(folder: Path, log: RunLog, steps: Sequence[int] | None, rows: int | None) -> list[Group]:
    """
    Records of a run by step: those of its rollouts, then those of its probe.

    Args:
        folder (`Path`): `output_dir` of the run.
        log ([`RunLog`]): What the run says of itself.
        steps (`list[int]`, *optional*): Only these.
        rows (`int`, *optional*): Only the first rollouts of each step.

    Raises:
        ValueError: If folder, records or a step are not there.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: give the `output_dir` of a run.")
    paths = {kind: steps_of(folder, kind) for kind in (STEP, PROBE)}
    there = sorted({step for of_kind in paths.values() for step in of_kind})
    if not there:
        raise ValueError(
            f"{folder} has no records of tokens: train with `log_tokens: 4` in the recipe, and each logged step leaves "
            f"one in {folder / FOLDER}."
        )
    unknown = [str(step) for step in sorted(set(steps or ())) if step not in there]
    if unknown:
        known = ", ".join(map(str, there))
        raise ValueError(f"{folder} has no record of step {', '.join(unknown)}: there are those of {known}.")
    groups = []
    for step, path in paths[STEP].items():
        if steps is None or step in steps:
            head, rollouts = read(path)
            groups.append(Group(f"step {step}", head, rollouts[:rows], _same_weights(log, step - 1)))
    for step, path in paths[PROBE].items():
        if steps is None or step in steps:
            head, rollouts = read(path)
            groups.append(Group(f"after step {step}", head, rollouts[:rows], _same_weights(log, step), PROBED))
    return groups


def _same_weights(log: RunLog, updates: int) -> bool:
    """Whether a teacher has the student's weights and temperature: always, or until a step has changed its weights. The
    `base` teacher lacks the student's virtual tokens."""
    kind = log.options.get("teacher_model_kind")
    of_others = "teacher_model_name_or_path", "teacher_adapters", "distillation_teacher_temperature"
    if kind is None or any(log.options.get(name) for name in of_others):
        return False
    return kind == "live" or (updates == 0 and not (kind == "base" and log.options.get("virtual_tokens")))
