# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Tables of experiments: mean, range and intervals over the seeds, and the difference from a baseline."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.experiments import EXPERIMENTS, Experiment
from benchmarks.evidence.statistics import interval
from benchmarks.report import table


HEAD = ["contender", "seeds", "right", "range", "less the baseline", "sampled", "with solution", "with hint", "seconds"]


def right(runs: list[dict[str, Any]]) -> np.ndarray:
    """Right greedy answers after the training, `(S, P)`."""
    return np.array([[float(one) for one in run["right"]] for run in runs])


def spread(runs: list[dict[str, Any]], key: str) -> str:
    values = [100 * run[key] for run in runs]
    return f"{np.mean(values):.1f}"


def read_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Results by contender, failed ones too."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        one = json.loads(path.read_text())
        found.setdefault(one["contender"], []).append(one)
    return found


def experiment_table(experiment: Experiment, done: dict[str, list[dict[str, Any]]]) -> str:
    """One row a contender, the baseline first."""
    baseline, rows = done.get(experiment.baseline, []), []
    unit = np.mean([run["seconds"] for run in done["grpo"]]) if done.get("grpo") else None
    for name in (experiment.baseline, *experiment.contenders):
        runs = done.get(name, [])
        if not runs:
            continue
        own = right(runs)
        seeds = 100 * own.mean(1)
        compared = name != experiment.baseline and len(runs) > 1 and len(baseline) > 1
        cost = "" if unit is None else f"{np.mean([run['seconds'] for run in runs]) / unit:.2f}"
        rows.append(
            [
                name, str(len(runs)), str(interval(own)), f"{seeds.min():.1f} to {seeds.max():.1f}",
                str(interval(own, right(baseline))) if compared else "",
                *(spread(runs, key) for key in ("sampled", "with_solution", "with_hint")), cost,
            ]
        )  # fmt: skip
    return table(HEAD, rows)


def report(folder: Path, experiments: list[str]) -> str:
    """Tables of experiments, and what failed."""
    results = read_results(folder)
    done = {name: [one for one in runs if "error" not in one] for name, runs in results.items()}
    parts = []
    for name in experiments:
        one = EXPERIMENTS[name]
        parts.append(f"### {name}\n\n{one.question}\n\n{experiment_table(one, done)}")
    failed = [f"- {one['contender']}, seed {one['seed']}: {one['error']}"
              for runs in results.values() for one in runs if "error" in one]  # fmt: skip
    return "\n\n".join(parts) + ("\n\nFailed:\n\n" + "\n".join(failed) if failed else "")
