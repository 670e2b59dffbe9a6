# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Tables, targets and picture of bench_kernel, from the rows of its CSV file."""

from pathlib import Path
from typing import Any

from bench.kernel import FLOOR
from bench.losses import FULL, LIGER, LOSSES, OURS, TRL
from bench.measure import spread
from bench.report import COLOURS, Row, Target, figure, logarithmic, median, megabytes, save, table, target_table, values


TITLES = {"forward_kl": "forward KL", "reverse_kl": "reverse KL", "jsd": "JS"}
SHAPE = ("n", "h", "v", "k", "kind")


class Figures:
    """Rows looked up by case and contender."""

    def __init__(self, rows: list[Row]):
        self.rows = rows

    def cases(self, part: str) -> list[tuple]:
        return list(dict.fromkeys(tuple(row[key] for key in SHAPE) for row in self.rows if row["part"] == part))

    def values(self, part: str, case: tuple, name: str, column: str) -> list[float]:
        return values(self.rows, column, part=part, contender=name, **dict(zip(SHAPE, case, strict=True)))

    def median(self, part: str, case: tuple, name: str, column: str) -> float | None:
        return median(self.rows, column, part=part, contender=name, **dict(zip(SHAPE, case, strict=True)))

    def cell(self, part: str, case: tuple, name: str) -> str:
        found = self.values(part, case, name, "over_floor")
        return spread(found) if found else "-"


def size(case: tuple) -> str:
    return ", ".join(str(value) for value in case[:3])


def loss_tables(figures: Figures) -> str:
    cases = figures.cases("losses")
    names = [name for name in LOSSES if any(figures.values("losses", case, name, "seconds") for case in cases)]
    times, peaks = [], []
    for case in cases:
        label = [size(case), TITLES[case[4]]]
        floor = figures.median("losses", case, FLOOR, "seconds")
        times.append([*label, f"{floor:.2f}", *(figures.cell("losses", case, name) for name in names)])
        peaks.append([*label, *(megabytes(figures.median("losses", case, name, "peak_mb")) for name in names)])
    worst = max(
        (row["difference"] for row in figures.rows if row["difference"] != "" and row["seconds"] != ""), default=0
    )
    refused = sorted({row["contender"] for row in figures.rows if row["round"] == "refused"})
    text = [
        "Time of loss and backward over the matrix products (`floor`, in seconds): median (least-greatest).",
        table(["N, H, V", "kind", "floor", *names], times),
    ]
    if any(cell != "-" for row in peaks for cell in row[2:]):
        text += ["Peak memory above the inputs, MB:", table(["N, H, V", "kind", *names], peaks)]
    agreement = f"All agree with float64 autograd in value and gradients to {worst:.0e} of the greatest entry."
    text.append(agreement + (f" Refused, as they do not: {', '.join(refused)}." if refused else ""))
    return "\n\n".join(text)


def sweep_tables(figures: Figures) -> list[str]:
    text = []
    for part, title in (("tokens", "N"), ("vocabulary", "V"), ("views", "K")):
        rows = []
        for case in figures.cases(part):
            peaks = (megabytes(figures.median(part, case, name, "peak_mb")) for name in (OURS, FULL))
            ratios = (figures.cell(part, case, name) for name in (OURS, FULL))
            rows.append([size(case), case[3], f"{figures.median(part, case, FLOOR, 'seconds'):.2f}", *ratios, *peaks])
        if rows:
            header = ["N, H, V", "K", "floor (s)", "ours", "full logits", "ours (MB)", "full logits (MB)"]
            text += [f"Growth in {title}, forward KL:", table(header, rows)]
    return text


def targets(figures: Figures) -> list[Target]:
    made = []
    for case in figures.cases("losses"):
        ours = figures.median("losses", case, OURS, "over_floor")
        if ours is None:
            continue
        where = f"{TITLES[case[4]]} at {size(case)}"
        jsd = case[4] == "jsd"
        made.append(Target(f"ours over the matrix products, {where}", 1.35 if jsd else 1.25, ours))
        trl = figures.median("losses", case, TRL, "over_floor")
        made.append(Target(f"TRL chunked over ours, {where}", 2.2 if jsd else 1.6, trl and trl / ours, True))
        others = [figures.median("losses", case, name, "over_floor") for name in (FULL, LIGER)]
        best = min((value for value in others if value is not None), default=None)
        made.append(Target(f"ours over the better of full logits and Liger, {where}", 1.03, best and ours / best))
        peaks = [figures.median("losses", case, name, "peak_mb") for name in (OURS, FULL)]
        if case[0] == 2048 and None not in peaks:
            made.append(Target(f"peak memory of ours over full logits, {where}", 0.125, peaks[0] / peaks[1]))
    return made


def blocks(rows: list[Row], suffix: str, setting: str) -> dict[str, str]:
    figures = Figures(rows)
    text = [f"{setting}.", loss_tables(figures), *sweep_tables(figures), target_table(targets(figures))]
    return {f"bench_kernel{suffix}": "\n\n".join(text)}


def draw(rows: list[Row], path: Path) -> None:
    figures = Figures(rows)
    made, (left, middle, right) = figure(3)
    first = figures.cases("losses")[0][:4]
    kinds = [case for case in figures.cases("losses") if case[:4] == first]
    names = [name for name in LOSSES if figures.values("losses", kinds[0], name, "seconds")]
    for axes, column, title in ((left, "over_floor", "time over the matrix products"), (middle, "peak_mb", "peak MB")):
        bars(axes, figures, kinds, names, column)
        axes.set(title=f"{title}\nN, H, V = {size(kinds[0])}")
    left.axhline(1, color="black", lw=1)
    logarithmic(middle)
    left.legend(fontsize="x-small", ncols=2)
    growth(right, figures)
    save(made, path)


def bars(axes: Any, figures: Figures, kinds: list[tuple], names: list[str], column: str) -> None:
    width = 0.8 / len(names)
    for index, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        heights = [figures.median("losses", case, name, column) or 0 for case in kinds]
        places = [place + (index - len(names) / 2 + 0.5) * width for place in range(len(kinds))]
        axes.bar(places, heights, width * 0.9, label=name, color=colour)
    axes.set_xticks(range(len(kinds)), [TITLES[case[4]] for case in kinds])


def growth(axes: Any, figures: Figures) -> None:
    """Peak memory over the number of tokens."""
    for name, colour in ((OURS, COLOURS[0]), (FULL, COLOURS[1])):
        points = [(case[0], figures.median("tokens", case, name, "peak_mb")) for case in figures.cases("tokens")]
        points = [point for point in points if point[1] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    logarithmic(axes, [case[0] for case in figures.cases("tokens")])
    axes.set(xlabel="tokens", title="peak MB, forward KL")
    axes.legend(fontsize="x-small")
