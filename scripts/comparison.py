# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Table and picture of the runs that `compare_methods.py` has made."""

import json
from pathlib import Path
from typing import Any

from demo import DIVERGENCE
from trl_opsd.methods import method_names, method_of


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def curve(runs: list[dict[str, Any]]) -> dict[int, float]:
    """Mean score of several seeds by step."""
    steps = sorted({int(step) for run in runs for step in run["scores"]})
    return {step: mean([run["scores"][str(step)] for run in runs if str(step) in run["scores"]]) for step in steps}


def by_contender(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [one for one in results if one["contender"] == name] for name in
            sorted({one["contender"] for one in results})}  # fmt: skip


def table(results: list[dict[str, Any]]) -> str:
    """Markdown of one task: means over the seeds by step, the last score of each seed, and what failed."""
    done = [one for one in results if "error" not in one]
    steps = sorted({int(step) for one in done for step in one["scores"]})
    head = ["contender", "label", *(f"step {step}" for step in steps), "last, by seed", "divergence", "s a step"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name, runs in by_contender(done).items():
        method = name.split("+")[0]
        label = method_of(method).label if method in method_names() else ""
        means = curve(runs)
        cells = [f"{means[step]:.1%}" if step in means else "" for step in steps]
        last = ", ".join(f"{one['seed']}: {one['scores'][max(one['scores'], key=int)]:.1%}" for one in runs)
        moved = [one["metrics"][DIVERGENCE] for one in runs if one["metrics"][DIVERGENCE]]
        gap = f"{mean([one[0] for one in moved]):.2f} -> {mean([one[-1] for one in moved]):.2f}" if moved else ""
        seconds = mean([value for one in runs for value in one["step_seconds"]])
        lines.append(f"| {' | '.join([f'`{name}`', label, *cells, last, gap, f'{seconds:.1f}'])} |")
    failed = [f"- `{one['contender']}`, seed {one['seed']}: {one['error']}" for one in results if "error" in one]
    return "\n".join([*lines, *(["", "Failed:", "", *failed] if failed else [])])


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Score by step, one panel a contender and one line a seed, which a mean would hide."""
    from matplotlib import pyplot as plt

    done = by_contender([one for one in results if "error" not in one])
    columns = min(4, max(len(done), 1))
    rows = -(-len(done) // columns) or 1
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(2.6 * columns, 2.2 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (name, runs) in zip(grid.flat, done.items(), strict=False):
        for one in runs:
            steps = [int(step) for step in one["scores"]]
            axes.plot(steps, [100 * score for score in one["scores"].values()], marker=".", label=f"seed {one['seed']}")
        axes.set_title(name, fontsize="medium")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(done) :]:
        axes.set_axis_off()
    if done:
        grid.flat[0].legend(fontsize="small")
    figure.supxlabel("step")
    figure.supylabel("right held-out answers, %")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(output: Path) -> str:
    """Table and picture of each task, of all runs in the folder."""
    results = [json.loads(path.read_text()) for path in sorted(output.glob("*.json"))]
    parts = []
    for task in sorted({one["task"] for one in results}):
        own = [one for one in results if one["task"] == task]
        draw(own, output / f"{task}.png")
        parts.append(f"## {task}\n\n{table(own)}")
    text = "\n\n".join(parts) + "\n"
    (output / "table.md").write_text(text)
    return text
