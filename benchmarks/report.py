# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Report of a benchmark: CSV file, Markdown tables and picture, and their place in docs/performance.md."""

import argparse
import csv
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import machine


COLOURS = ["tab:red", "tab:blue", "tab:cyan", "tab:green", "tab:grey", "tab:orange", "tab:brown", "tab:purple"]

Row = dict[str, Any]


@dataclass
class Target:
    """
    Measured figure beside its target.

    Args:
        what (`str`): What is compared.
        limit (`float`): The least or the most that it may be.
        figure (`float` or `None`): What was measured, `None` where it was not.
        at_least (`bool`): Which of the two.
    """

    what: str
    limit: float
    figure: float | None
    at_least: bool = False

    def row(self) -> list[str]:
        sign = ">=" if self.at_least else "<="
        limit = f"{sign} {self.limit:.3g}"
        if self.figure is None:
            return [self.what, limit, "-", "not measured"]
        met = self.figure >= self.limit if self.at_least else self.figure <= self.limit
        return [self.what, limit, f"{self.figure:.3g}", "met" if met else "**missed**"]


class Records:
    """Rows of a benchmark, found by the values of their columns; empty cells are left out."""

    def __init__(self, rows: Iterable[Row], **where: Any):
        self.rows = [row for row in rows if all(row[key] == value for key, value in where.items())]

    def where(self, **where: Any) -> "Records":
        return Records(self.rows, **where)

    def distinct(self, *columns: str) -> list[Any]:
        """Values of a column, or tuples of several, in the order of the rows."""
        found = dict.fromkeys(tuple(row[column] for column in columns) for row in self.rows)
        return [one[0] if len(columns) == 1 else one for one in found]

    def values(self, column: str, **where: Any) -> list[float]:
        return [row[column] for row in self.where(**where).rows if row[column] != ""]

    def median(self, column: str, **where: Any) -> float | None:
        found = self.values(column, **where)
        return statistics.median(found) if found else None

    def spread(self, column: str, scale: float = 1, digits: int = 2, **where: Any) -> str:
        """Median, and in brackets the least and the greatest; a dash where there is none."""
        found = [scale * value for value in self.values(column, **where)]
        if not found:
            return "-"
        middle = f"{statistics.median(found):.{digits}f}"
        return middle if len(found) == 1 else f"{middle} ({min(found):.{digits}f}-{max(found):.{digits}f})"


def target_table(targets: Iterable[Target]) -> str:
    return table(["what", "target", "measured", ""], [target.row() for target in targets])


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def write_csv(path: Path, rows: list[Row]) -> None:
    """Rows with the same keys; floats with as many digits as carry something."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
    print(f"{path} written.")


def publish(args: argparse.Namespace, name: str, rows: list[Row], text: list[str], draw: Callable | None) -> None:
    """Write the CSV file, the picture that `draw(records, path)` makes, and the text into docs/performance.md."""
    write_csv(args.output / f"{name}.csv", rows)
    if draw:
        draw(Records(rows), args.output / f"{name}.png")
    put(args.output, {"machine": machine(args.device), f"bench_{name}": "\n\n".join(text)})


def put(output: Path, blocks: dict[str, str]) -> None:
    """
    Show blocks of Markdown, and put each between its markers in performance.md beside the output folder; markers that
    are not there yet come at the end.

    Args:
        output (`Path`): Folder of the CSV files.
        blocks (`dict[str, str]`): Text by the name of its markers.
    """
    page = output.parent / "performance.md"
    text = page.read_text() if page.exists() else ""
    for marker, block in blocks.items():
        print(f"\n{block}\n")
        marked = f"<!-- {marker} -->\n{block}\n<!-- /{marker} -->"
        pattern = re.compile(rf"<!-- {marker} -->.*?<!-- /{marker} -->", re.S)
        text = pattern.sub(lambda _, new=marked: new, text) if pattern.search(text) else f"{text}\n{marked}\n"
    page.write_text(text)


def figure(columns: int, rows: int = 1, width: float = 4.2, height: float = 3.6, **shared: bool) -> tuple[Any, Any]:
    """A figure with its axes, ready to draw without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    made, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False, **shared
    )
    for one in axes.flat:
        one.grid(alpha=0.3)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return made, axes.flat


def logarithmic(axes: Any, ticks: list[int] | None = None) -> None:
    """A logarithmic y axis, and x axis with these ticks, labelled in plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if ticks:
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())


def save(made: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    made.savefig(path, dpi=130)
    plt.close(made)
    print(f"{path} written.")
