# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Records of a run, read back for a report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_opsd.monitoring.json_lines import read as read_lines
from trl_opsd.token_report.record import FOLDER, Line, read


@dataclass(frozen=True)
class Group:
    """
    Rollouts that are shown together: those of a step, or of a checkpoint.

    Args:
        label (`str`): Its name, such as `"step 4"`.
        head (`dict`): First line of their record; of a checkpoint without `step`.
        rollouts (`list[dict]`): Its other lines.
        same_weights (`bool`): Whether their teacher has the student's weights, for the self-checks.
    """

    label: str
    head: Line
    rollouts: list[Line]
    same_weights: bool = False


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
    Records of a run by step.

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
    paths = {int(path.name[5:-9]): path for path in sorted((folder / FOLDER).glob("step-*.jsonl.gz"))}
    if not paths:
        raise ValueError(
            f"{folder} has no records of tokens: train with `log_tokens: 4` in the recipe, and each logged step leaves "
            f"one in {folder / FOLDER}."
        )
    chosen = sorted(paths) if steps is None else sorted(set(steps))
    unknown = [str(step) for step in chosen if step not in paths]
    if unknown:
        there = ", ".join(map(str, sorted(paths)))
        raise ValueError(f"{folder} has no record of step {', '.join(unknown)}: there are those of {there}.")
    groups = []
    for step in chosen:
        head, rollouts = read(paths[step])
        groups.append(Group(f"step {step}", head, rollouts[:rows], _same_weights(log, step)))
    return groups


def _same_weights(log: RunLog, step: int) -> bool:
    """Whether a teacher has the student's weights: always, or until the first step has changed the student's. The
    `base` teacher lacks the student's virtual tokens."""
    kind = log.options.get("teacher_model_kind")
    if kind is None or log.options.get("teacher_model_name_or_path"):
        return False
    return kind == "live" or (step == 1 and not (kind == "base" and log.options.get("virtual_tokens")))
