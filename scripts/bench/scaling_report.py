# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Tables, fits and picture of bench_scaling, from the rows of its CSV file."""

import math
import statistics
from pathlib import Path
from typing import Any

from bench.measure import spread
from bench.report import COLOURS, Row, Target, figure, median, megabytes, save, table, target_table, values


GROWTH = ("completion", "context", "shared context", "views")  # what grows
LINEAR = 1.1  # the greatest exponent that still passes for linear
FLAT = 1.1


def curve(rows: list[Row], part: str, column: str) -> dict[float, float]:
    """Median over the rounds and processes by x: 10^9 operations of a window, or what the part is named after."""
    places = sorted({row["x"] for row in rows if row["part"] == part and row[column] != ""})
    return {x: median(rows, column, part=part, x=x) for x in places}


def exponent(points: dict[float, float]) -> float:
    """Slope of log y over log x by least squares: 1 is linear, less is linear with a constant part beside it."""
    x, y = (list(map(math.log, numbers)) for numbers in (points.keys(), points.values()))
    return statistics.linear_regression(x, y).slope


def growth_table(rows: list[Row]) -> str:
    lines = []
    for part in GROWTH:
        points = curve(rows, part, "seconds")
        for x in points:
            detail = next(row["detail"] for row in rows if row["part"] == part and row["x"] == x)
            seconds = spread(values(rows, "seconds", part=part, x=x))
            fit = f"{exponent(points):.2f}" if x == max(points) else ""
            lines.append([part, detail, f"{x:,.0f}", seconds, fit])
    return table(["what grows", "of a row", "10^9 operations", "seconds", "exponent"], lines)


def memory_table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        if row["part"].startswith("loss"):
            cells = (megabytes(row[column] or None) for column in ("peak_mb", "beyond_gradients_mb"))
            lines.append([row["detail"], *cells])
    return table(["loss and backward", "peak MB above the inputs", "of it beyond the gradients"], lines)


def process_table(rows: list[Row]) -> str:
    lines = []
    for part in dict.fromkeys(row["part"] for row in rows if row["part"].startswith("processes")):
        points = curve(rows, part, "seconds")
        for count, seconds in points.items():
            efficiency = f"{points[1] / seconds:.2f}" if 1 in points else "-"
            lines.append(
                [part.split(", ", 1)[1], count, spread(values(rows, "seconds", part=part, x=count)), efficiency]
            )
    return table(["trainer", "processes", "seconds of a micro-batch in each", "efficiency"], lines)


def targets(rows: list[Row]) -> list[Target]:
    made = []
    for part in GROWTH:
        fit = exponent(curve(rows, part, "seconds"))
        made.append(Target(f"exponent of time over operations, {part} grows (1 is linear)", LINEAR, fit))
    tokens, vocabulary = (curve(rows, f"loss, {part}", "beyond_gradients_mb") for part in ("tokens", "vocabulary"))
    if tokens:
        first, last = min(tokens), max(tokens)
        what = f"growth of the loss's memory beyond its gradients, N from {first:,} to {last:,} (1 is flat)"
        made.append(Target(what, FLAT, tokens[last] / tokens[first]))
        most, room = max(vocabulary), rows[0]["budget_mb"]
        what = f"the loss's memory beyond its gradients at V = {most:,}, over a fixed {room:.0f} MB for logits"
        made.append(Target(what, FLAT, vocabulary[most] / room))
    return made


def blocks(rows: list[Row], setting: str) -> dict[str, str]:
    text = [
        f"{setting}.",
        "Time over the operations of the matrix products, by counts; a context that is shared counts for each row:",
        growth_table(rows),
        "Memory of the loss alone, forward KL, H = 576:",
        memory_table(rows),
        "Processes under DDP (gloo), each with its own rows; efficiency is the time of one over the time of several:",
        process_table(rows),
        target_table(targets(rows)),
    ]
    return {"bench_scaling": "\n\n".join(text)}


def draw(rows: list[Row], path: Path) -> None:
    made, (left, right) = figure(2, width=5)
    for part, colour in zip(GROWTH, COLOURS, strict=False):
        points = curve(rows, part, "seconds")
        line(left, points, f"{part}, exponent {exponent(points):.2f}", colour)
    left.set(xlabel="10^9 operations of a window, by counts", title="seconds of a window")
    left.set_xlim(left=0)
    line(right, curve(rows, "loss, tokens", "peak_mb"), "peak", "tab:grey")
    line(right, curve(rows, "loss, tokens", "beyond_gradients_mb"), "of it beyond the gradients", "tab:red")
    right.set(xlabel="tokens", title="MB of the loss alone")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
    save(made, path)


def line(axes: Any, points: dict[float, float], label: str, colour: str) -> None:
    axes.plot(list(points), list(points.values()), "o-", label=label, color=colour)
