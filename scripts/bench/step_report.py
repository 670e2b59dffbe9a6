# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Tables, targets and picture of bench_step, from the rows of its CSV file."""

import statistics
from pathlib import Path

from bench.measure import spread
from bench.report import Row, Target, figure, median, megabytes, save, table, target_table, values
from bench.step import BARE, GRPO, LIVE, PRODUCTS, SDFT, SDPO, TITLES, base_of


class Figures:
    """Rows of one model, looked up by scenario and contender."""

    def __init__(self, rows: list[Row], model: str):
        self.rows = [row for row in rows if row["model"] == model]
        self.weights_mb = self.rows[0]["weights_mb"]

    def names(self, scenario: str) -> list[str]:
        names = dict.fromkeys(row["contender"] for row in self.rows if row["scenario"] == scenario)
        return [name for name in names if name != BARE and not name.endswith(PRODUCTS)]

    def values(self, scenario: str, name: str, column: str) -> list[float]:
        return values(self.rows, column, scenario=scenario, contender=name)

    def median(self, scenario: str, name: str, column: str) -> float | None:
        return median(self.rows, column, scenario=scenario, contender=name)

    def over(self, scenario: str, name: str, other: str) -> float | None:
        """Median over the rounds of the ratio within each."""
        pairs = zip(self.values(scenario, name, "seconds"), self.values(scenario, other, "seconds"), strict=False)
        ratios = [one / base for one, base in pairs]
        return statistics.median(ratios) if ratios else None


def time_table(figures: Figures, scenario: str) -> str:
    """With the number of tokens that all contenders read above it."""
    rows = []
    for name in figures.names(scenario):
        seconds, ratios = (figures.values(scenario, name, column) for column in ("seconds", "over_grpo"))
        products = figures.median(scenario, f"{name}{PRODUCTS}", "seconds")
        share = "-" if products is None else f"{products:.2f}"
        rows.append(
            [name, spread([1000 * one for one in seconds], 0), "1" if name == base_of(name) else spread(ratios), share]
        )
    counts = [
        int(figures.median(scenario, *pair))
        for pair in ((GRPO, "completion_tokens"), (GRPO, "student_tokens"), (BARE, "teacher_tokens"))
    ]
    bare = figures.over(scenario, BARE, GRPO)
    title = (
        f"{TITLES[scenario]}. Completion tokens: {counts[0]}, with the prompts: {counts[1]}, what one view's teacher "
        f"reads: {counts[2]}. t/g = {bare:.3f} (t: its bare body forward, g: GRPO's loss and backward)."
    )
    return f"{title}\n\n{table(['trainer', 'ms', 'over GRPO', 'of it matrix products (s)'], rows)}"


def memory_table(figures: Figures) -> str:
    rows = []
    for name in figures.names("memory"):
        peak = figures.median("memory", name, "peak_mb")
        rows.append([name, megabytes(peak), megabytes(peak and peak + figures.weights_mb)])
    tokens = int(figures.median("memory", GRPO, "completion_tokens"))
    title = f"{TITLES['memory']}, {tokens} completion tokens in one micro-batch:"
    return f"{title}\n\n{table(['trainer', 'MB above the weights', 'MB with the weights'], rows)}"


def targets(figures: Figures) -> list[Target]:
    made = []
    share = figures.over("own", BARE, GRPO)
    for name in figures.names("own"):
        if name in (LIVE, "pure, base"):
            figure_ = figures.median("own", name, "over_grpo")
            made.append(Target(f"{name} over GRPO: 1 + 1.1 t/g", 1 + 1.1 * share, figure_))
    if LIVE in figures.names("shared"):
        figure_ = figures.median("shared", LIVE, "over_grpo")
        made.append(Target("pure, live over GRPO, shared context", 1.25, figure_))
    for scenario, where in (("own", ""), ("shared", ", shared context")):
        for peer in (SDFT, SDPO):
            if peer in figures.names(scenario):
                ratio = figures.over(scenario, peer, LIVE)
                made.append(Target(f"steps a second over {peer}{where}", 1.5, ratio, at_least=True))
    if LIVE in figures.names("memory"):
        for peer in (SDFT, SDPO):
            ours, theirs = (figures.median("memory", name, "peak_mb") for name in (LIVE, peer))
            for what, weights in (("above the weights", 0.0), ("with the weights", figures.weights_mb)):
                ratio = (ours + weights) / (theirs + weights) if ours and theirs else None
                made.append(Target(f"peak memory over {peer}, {what}", 0.5, ratio))
    return made


def blocks(rows: list[Row], setting: str) -> dict[str, str]:
    text = [f"{setting}."]
    for model in dict.fromkeys(row["model"] for row in rows):
        figures = Figures(rows, model)
        text.append(f"### {model}")
        text += [time_table(figures, name) for name in ("own", "shared") if figures.names(name)]
        text += [memory_table(figures), target_table(targets(figures))]
    return {"bench_step": "\n\n".join(text)}


def draw(rows: list[Row], path: Path) -> None:
    """Seconds over GRPO of every trainer, one picture a model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    made, axes = figure(len(models), width=6)
    for one, model in zip(axes, models, strict=True):
        figures = Figures(rows, model)
        bars = [(name, figures, scenario) for scenario in ("own", "shared") for name in figures.names(scenario)]
        labels = [f"{name}{', shared context' if scenario == 'shared' else ''}" for name, _, scenario in bars]
        heights = [figures.median(scenario, name, "over_grpo") for name, _, scenario in bars]
        colours = ["tab:grey" if name.startswith((GRPO, "SD")) else "tab:red" for name, _, _ in bars]
        one.barh(range(len(bars)), heights, color=colours)
        one.set_yticks(range(len(bars)), labels, fontsize="small")
        one.invert_yaxis()
        one.axvline(1, color="black", lw=1)
        one.set(title=model, xlabel="time of the training part over GRPO")
    save(made, path)
