# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Results of the GPU check, found by what they are of, beside their targets on an H100 or H200 in bfloat16."""

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.contenders import FULL, FULL_COMPILED, LIGER_COMPILED, LIGER_TRITON, OURS, TRL
from benchmarks.gpu.kernel import ELSEWHERE, KINDS, SIZES
from benchmarks.gpu.run import PARTS
from benchmarks.kernel import TITLES
from benchmarks.report import Row, Target
from benchmarks.step import BARE, GRPO, LIVE


MOST = {1024: 1.6, 4096: 1.3}  # H: forward and reverse KL over the floor; at 2048 between them there is no target
JSD = 1.1  # times that
RIVALS = (TRL, LIGER_TRITON, LIGER_COMPILED, FULL_COMPILED)
MEMORY = 1 / 8  # of full logits
TEACHER = 1.1  # times the bare teacher forward, beyond GRPO
VALUE_TOLERANCE = 0.05  # a loss that is further from its exact value computes something else


class Results:
    """
    Rows of all parts.

    Args:
        parts (`dict[str, list[Row]]`): Rows by the name of their part.
    """

    def __init__(self, parts: dict[str, list[Row]]):
        self.parts = parts

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Of the files that the parts have written."""
        files = {name: folder / f"{name}.json" for name in PARTS}
        return cls({name: json.loads(file.read_text()) for name, file in files.items() if file.exists()})

    def good(self, part: str) -> list[Row]:
        return [row for row in self.parts.get(part, []) if "error" not in row]

    def failed(self, part: str) -> list[Row]:
        return [row for row in self.parts.get(part, []) if "error" in row]

    def find(self, part: str, column: str, **where: Any) -> Any:
        """The value of the first row that fits, or `None`."""
        for row in self.good(part):
            if all(row.get(key) == value for key, value in where.items()) and row.get(column) is not None:
                return row[column]
        return None

    def loss(self, column: str, name: str, kind: str, size: tuple[int, int, int]) -> float | None:
        """A column of a loss that computes what it should."""
        where = {"name": name, "kind": kind, "size": list(size)}
        error = self.find("kernel", "value_error", **where)
        if error is None or not error <= VALUE_TOLERANCE:
            return None
        return self.find("kernel", column, **where)

    def loss_ratio(self, column: str, name: str, other: str, kind: str, size: tuple[int, int, int]) -> float | None:
        first, second = (self.loss(column, one, kind, size) for one in (name, other))
        return first / second if first and second else None

    @property
    def card(self) -> str | None:
        return self.find("env", "card", what="machine")


def targets(results: Results) -> list[Target]:
    return [*loss_targets(results), *step_targets(results), *exactness_targets(results)]


def loss_targets(results: Results) -> list[Target]:
    made = []
    for size in SIZES:
        for kind in KINDS:
            where, most = f"{TITLES[kind]} at {', '.join(map(str, size))}", MOST.get(size[1])
            if most:
                limit = most * JSD if kind == "jsd" else most
                made.append(Target(f"over the floor, {where}", limit, results.loss("over_floor", OURS, kind, size)))
        for rival in RIVALS:
            if size == SIZES[0] or rival in ELSEWHERE:
                made.append(worst(results, "seconds", f"time over {rival}", rival, size, 1.0))
        made.append(worst(results, "peak_mb", "peak memory over full logits", FULL, size, MEMORY))
    return made


def worst(results: Results, column: str, what: str, rival: str, size: tuple[int, int, int], limit: float) -> Target:
    """The greatest ratio to another loss, of the divergences for which both were measured."""
    found = {kind: results.loss_ratio(column, OURS, rival, kind, size) for kind in KINDS}
    ratios = {kind: ratio for kind, ratio in found.items() if ratio is not None}
    kinds = f" ({', '.join(TITLES[kind] for kind in ratios)})" if ratios else ""
    where = ", ".join(map(str, size))
    return Target(f"{what} at {where}, the greatest{kinds}", limit, max(ratios.values(), default=None))


def step_targets(results: Results) -> list[Target]:
    def seconds(name: str) -> float | None:
        on_gpu = results.card is not None
        return results.find("step", "seconds", scenario="own", name=name) if on_gpu else None

    grpo, bare = seconds(GRPO), seconds(BARE)
    made = []
    for name in (LIVE, "pure, base"):
        most = grpo + TEACHER * bare if grpo and bare else None
        ratio = seconds(name) / most if most and seconds(name) else None
        made.append(Target(f"step, {name}, over GRPO and {TEACHER} bare teacher forwards", 1.0, ratio))
    return made


def exactness_targets(results: Results) -> list[Target]:
    worse = [row["worse_than_cpu"] for row in results.good("values") if "worse_than_cpu" in row]
    zeros = [row["greatest_gradient"] for row in results.good("values") if "greatest_gradient" in row]
    resumed = [row["resumed_differs_by"] for row in results.good("train") if "resumed_differs_by" in row]
    return [
        Target("values: cases with more than three times the error on the CPU", 0.0, sum(worse) if worse else None),
        Target("greatest gradient where the teacher equals the student", 0.0, max(zeros, default=None)),
        Target("greatest difference of a weight after resuming", 0.0, max(resumed, default=None)),
    ]
