# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Report of the GPU check: one page of tables for a run, and the published results in docs/performance.md."""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT
from benchmarks.gpu.counted import BANDWIDTH, COUNTS
from benchmarks.gpu.run import PARTS
from benchmarks.gpu.targets import Results, targets
from benchmarks.kernel import TITLES
from benchmarks.report import put, table, target_table


PAGES = ROOT / "docs" / "benchmarks"
PUBLISHED = PAGES / "gpu"
NOT_YET = "not measured yet"
SHOWN_SIZES = [(4096, 1024, 151936), (4096, 4096, 151936)]  # N, H, V of the table beside the counts
COLUMNS: dict[str, tuple[str, ...]] = {
    "env": ("what",),
    "values": ("what", "cases", "loss", "gradients", "median_gradient", "statistics", "worse_than_cpu",
               "greatest_gradient"),
    "kernel": ("what", "size", "seconds", "over_floor", "peak_mb", "first_call_s", "value_error",
               "hidden_gradient_error", "weight_gradient_error", "busy_share", "launches"),
    "step": ("what", "seconds", "least", "most", "peak_mb", "synchronisations", "busy_share", "launches",
             "student_tokens", "teacher_tokens"),
    "train": ("what", "losses", "moved", "resumed_differs_by", "skipped"),
    "dist": ("what", "wrapped", "backend", "type", "losses"),
}  # fmt: skip


def write(folder: Path) -> None:
    """Write and show `report.md` of a run."""
    text = page(Results.read(folder))
    (folder / "report.md").write_text(text)
    print(text)


def page(results: Results) -> str:
    """The page of one run: machine, targets, a table for each part, and what failed."""
    parts = ["# GPU check", machine(results), "## Targets", target_table(targets(results))]
    for name in PARTS:
        good, failed = results.good(name), results.failed(name)
        parts.append(f"## {name}")
        if not good and not failed:
            parts.append("Did not run.")
        elif name == "env":
            parts.append("\n".join(f"- {described(row)}" for row in good))
        elif good:
            parts.append(table(list(COLUMNS[name]), [cells(row, COLUMNS[name]) for row in good]))
        if name == "step":
            parts += [f"{row['what']} waits at {row['synchronised_at']}" for row in good if row.get("synchronised_at")]
        parts += [f"**Failed**: {row['what']}: {row['error']}" for row in failed]
    return "\n\n".join(parts) + "\n"


def cells(row: dict[str, Any], columns: tuple[str, ...]) -> list[str]:
    def cell(value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(cell(one) for one in value)
        return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")

    return [cell(row[column]) if row.get(column) is not None else "" for column in columns]


def described(row: dict[str, Any]) -> str:
    keys = [key for key in row if key != "what"]
    pairs = zip(keys, cells(row, tuple(keys)), strict=True)
    return f"{row['what']}: " + ", ".join(f"{key} {value or 'none'}" for key, value in pairs)


def machine(results: Results) -> str:
    """Card, driver, versions and date as one line, or that there was no GPU."""
    if results.card is None:
        return "On a CPU, in tiny sizes: it shows that the check runs, and measures nothing."
    found = {key: results.find("env", key) for key in ("driver", "date", "copy_tb_s", "bf16_tflop_s")}
    versions = [f"{name} {results.find('env', name)}" for name in ("torch", "triton", "transformers", "trl")]
    made = f"{results.card}, driver {found['driver']}; {', '.join(versions)}; {found['date']}"
    if found["copy_tb_s"]:
        made += f". A copy moves {found['copy_tb_s']:.2f} TB/s, a product does {found['bf16_tflop_s']:.0f} TFLOP/s"
    return f"{made}."


def publish(folder: Path) -> None:
    """
    Copy the results of a run on a GPU to docs/benchmarks/gpu, one pair of files for each card, and write the tables of
    docs/performance.md anew.

    Raises:
        SystemExit: If there are no such results.
    """
    results = Results.read(folder)
    if results.card is None:
        raise SystemExit(f"`--output {folder}`: it holds no results of a GPU. Run the check there without `--tiny`.")
    name = re.sub(r"\W+", "-", results.card.lower())
    PUBLISHED.mkdir(exist_ok=True)
    (PUBLISHED / f"{name}.json").write_text(json.dumps(results.parts, indent=1) + "\n")
    (PUBLISHED / f"{name}.md").write_text(page(results))
    put(PAGES, {"bench_gpu": block(published())})


def published() -> list[Results]:
    """Results of each card."""
    return [Results(json.loads(file.read_text())) for file in sorted(PUBLISHED.glob("*.json"))]


def block(cards: list[Results]) -> str:
    """Counted beside measured, then each card with its targets."""
    made = ["Time of loss and backward over the matrix products, N = 4096, V = 151936:", counted_table(cards)]
    if not cards:
        made += [f"Targets on an H100 or H200, {NOT_YET}:", target_table(targets(Results({})))]
    for results in cards:
        made += [f"### {results.card}", machine(results), target_table(targets(results))]
    return "\n\n".join(made)


def counted_table(cards: list[Results]) -> str:
    """One row for each contender and divergence; of each card the two sizes."""
    sizes = [(f"H {h}", (n, h, v)) for n, h, v in SHOWN_SIZES]
    header = ["loss", "divergence", "bytes"]
    header += [f"{card} counted, {title}" for card in BANDWIDTH for title, _ in sizes]
    header += [f"{one.card} measured, {title}" for one in cards for title, _ in sizes] or ["measured"]
    rows = []
    for (name, kind), count in COUNTS.items():
        row = [name, TITLES[kind], str(count.elementwise)]
        row += [f"{count.over_floor(h, v, rate):.2f}" for rate in BANDWIDTH.values() for _, (_, h, v) in sizes]
        found = [one.loss("over_floor", name, kind, size) for one in cards for _, size in sizes]
        row += ["-" if value is None else f"{value:.2f}" for value in found] or [NOT_YET]
        rows.append(row)
    return table(header, rows)
