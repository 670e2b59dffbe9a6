# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""CSV files, Markdown tables and pictures of results, and their place in docs/performance.md."""

import csv
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


COLOURS = ["tab:red", "tab:blue", "tab:cyan", "tab:green", "tab:grey", "tab:orange", "tab:brown", "tab:purple"]


Row = dict[str, Any]


@dataclass
class Target:
    """
    A figure beside what it should be.

    Args:
        what (`str`): What is compared.
        limit (`float`): The least or the most that it may be.
        figure (`float` or `None`): What was measured, `None` where it was not.
        at_least (`bool`): Which of the two.
        unit (`str`): Written after both.
    """

    what: str
    limit: float
    figure: float | None
    at_least: bool = False
    unit: str = ""

    def row(self) -> list[str]:
        sign = ">=" if self.at_least else "<="
        if self.figure is None:
            return [self.what, f"{sign} {self.limit:.3g}{self.unit}", "-", "not measured"]
        met = self.figure >= self.limit if self.at_least else self.figure <= self.limit
        return [
            self.what,
            f"{sign} {self.limit:.3g}{self.unit}",
            f"{self.figure:.3g}{self.unit}",
            "met" if met else "**missed**",
        ]


def values(rows: list[Row], column: str, **where: Any) -> list[float]:
    """What the rows with these keys hold, but for empty cells; in the order of the rounds."""
    found = (row for row in rows if all(row[key] == value for key, value in where.items()))
    return [row[column] for row in found if row[column] != ""]


def median(rows: list[Row], column: str, **where: Any) -> float | None:
    found = values(rows, column, **where)
    return statistics.median(found) if found else None


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


def put(output: Path, blocks: dict[str, str], name: str = "performance.md") -> None:
    """
    Show blocks of Markdown, and put each between its markers in a page beside the output folder; markers that are not
    there yet come at the end.

    Args:
        output (`Path`): Folder of the CSV files.
        blocks (`dict[str, str]`): Text by the name of its markers.
        name (`str`): Of the page.
    """
    page = output.parent / name
    text = page.read_text() if page.exists() else ""
    for marker, block in blocks.items():
        print(f"\n{block}\n")
        marked = f"<!-- {marker} -->\n{block}\n<!-- /{marker} -->"
        pattern = re.compile(rf"<!-- {marker} -->.*?<!-- /{marker} -->", re.S)
        text = pattern.sub(lambda _, new=marked: new, text) if pattern.search(text) else f"{text}\n{marked}\n"
    page.write_text(text)


def figure(columns: int, rows: int = 1, width: float = 4.2) -> tuple[Any, Any]:
    """A figure with its axes, ready to draw without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    made, axes = plt.subplots(rows, columns, figsize=(width * columns, 3.6 * rows), layout="constrained", squeeze=False)
    for one in axes.flat:
        one.grid(alpha=0.3)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return made, axes[0] if rows == 1 else axes


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
