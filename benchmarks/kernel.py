# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Kernel benchmark: time of the head and the divergence over their bare matrix products, and peak memory.

The contenders are this package's kernel, full logits, GKD's formula, and Liger's and TRL's chunked losses. Legend: N
tokens, H hidden size, V vocabulary, K views.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import settings
from benchmarks.losses import FULL, GKD, KINDS, LIGER, LOSSES, OURS, TRL, Floor, Inputs, contender, make_inputs
from benchmarks.measure import Results, Worker, interleave, workers
from benchmarks.report import (
    COLOURS,
    Records,
    Row,
    Target,
    figure,
    logarithmic,
    megabytes,
    publish,
    save,
    table,
    target_table,
)


FLOOR = "floor"
CORE = (OURS, FULL, LIGER, TRL)  # those that a target names
CHECKED_TOKENS = 72
SLOW = 1.6  # times the floor: a contender beyond it runs in one round only
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
TITLES = {"forward_kl": "forward KL", "reverse_kl": "reverse KL", "jsd": "JS"}
SHAPE = ("n", "h", "v", "k", "kind")
SMOLLM2, QWEN3 = (576, 49152), (1024, 151936)  # H, V


@dataclass(frozen=True)
class Case:
    part: str  # which table it belongs to
    n: int
    h: int
    v: int
    kind: str = "forward_kl"
    k: int = 1
    names: tuple[str, ...] = tuple(LOSSES)


def cases(args: argparse.Namespace) -> list[Case]:
    if args.quick:
        return [
            *(Case("losses", 40, 16, 300, kind) for kind in KINDS),
            *(Case("tokens", n, 16, 300, names=(OURS, FULL)) for n in (16, 64)),
            *(Case("vocabulary", 16, 16, v, names=(OURS, FULL)) for v in (256, 1024)),
            *(Case("views", 16, 16, 300, k=k, names=(OURS,)) for k in (1, 2)),
        ]
    if args.allocator == "tuned":
        sizes = [(1024, *SMOLLM2), (256, *QWEN3)]
        return [Case("losses", *size, kind, names=CORE) for size in sizes for kind in ("forward_kl", "jsd")]
    sizes, few = [(2048, *SMOLLM2), (256, *QWEN3)], {"names": (OURS, FULL)}
    names = {"forward_kl": tuple(LOSSES), "reverse_kl": CORE, "jsd": (*CORE, GKD)}  # the others would tell nothing new
    return [
        *(Case("losses", *size, kind, names=names[kind]) for size in sizes for kind in KINDS),
        *(Case("tokens", n, *SMOLLM2, **few) for n in (128, 512, 1024)),
        *(Case("vocabulary", 512, 576, v, **few) for v in (8192, 65536, 151936)),
        *(Case("views", 512, *SMOLLM2, k=k, names=(OURS,)) for k in (1, 2, 4)),
    ]


def run(args: argparse.Namespace) -> list[Row]:
    """Time every case; one row a run."""
    rows = []
    for case in cases(args):
        print(f"{case.part}: N={case.n} H={case.h} V={case.v} K={case.k} {case.kind} ...", flush=True)
        inputs = make_inputs(case.n, case.h, case.v, case.k, getattr(torch, args.dtype))
        names = [name for name in case.names if name in LOSSES]
        differences = check(case, names, inputs, args) if case.part == "losses" else {}
        for name in [name for name, value in differences.items() if value > TOLERANCE[args.dtype]]:
            print(f"  {name} is not reported: it differs from the float64 reference by {differences[name]:.1e}")
            names.remove(name)
        rows += to_rows(case, args, time_all(case, names, inputs, args), differences)
    return rows


def time_all(case: Case, names: list[str], inputs: Inputs, args: argparse.Namespace) -> Results:
    def build(name: str) -> Any:
        x = inputs.to(args.device)
        if name == FLOOR:
            return Floor(x)
        # Imports and the libraries' own work space are not the contender's; a tuned heap is filled before it is timed
        fills_heap = args.allocator == "tuned" and name == FULL
        contender(LOSSES[name], x if fills_heap else inputs.head(2).to(args.device), case.kind)()
        return contender(LOSSES[name], x, case.kind)

    builds = {name: partial(build, name) for name in (FLOOR, *names)}
    with workers(builds, args.threads, args.device, trim=args.allocator == "default") as made:
        return interleave(made, args.repeats, FLOOR, SLOW, always=OURS)


def check(case: Case, names: list[str], inputs: Inputs, args: argparse.Namespace) -> dict[str, float]:
    """
    By how much each contender's value and gradients differ from plain autograd in float64, on the first tokens: the
    greatest difference over the greatest entry, of value, hidden gradient and weight gradient.
    """

    def gradients(name: str, x: Inputs) -> list[torch.Tensor]:
        value = LOSSES[name](x, case.kind)
        if value.requires_grad:
            value.backward()
        return [value.detach(), x.hidden.grad, x.weight.grad]

    def compare() -> dict[str, float]:
        few = inputs.head(CHECKED_TOKENS)
        double = Inputs(few.hidden.double(), few.weight.double(), few.teacher.double(), few.labels)
        truth = gradients(FULL, double.to(args.device))
        differences = {}
        for name in names:
            pairs = zip(gradients(name, few.to(args.device)), truth, strict=True)
            differences[name] = max(float((value - true).abs().max() / true.abs().max()) for value, true in pairs)
        return differences

    # In a process of its own: autograd must not have run in the one that the contenders are forked off
    worker = Worker(lambda: {"compare": compare}, args.threads, args.device, trim=False)
    answer = worker.run("compare").answer
    worker.close()
    return answer


def to_rows(case: Case, args: argparse.Namespace, results: Results, differences: dict[str, float]) -> list[Row]:
    """One row a run, and one without a time for each contender that was refused."""
    shape = {key: getattr(case, key) for key in SHAPE}

    def row(name: str, number: int | str, seconds: Any = "", over_floor: Any = "", peak: int | None = None) -> Row:
        made = {"part": case.part, "allocator": args.allocator, **shape, "contender": name, "round": number}
        made |= {"seconds": seconds, "over_floor": over_floor}
        peak_mb = "" if peak is None or name == FLOOR else peak / 1e6
        return {**made, "peak_mb": peak_mb, "difference": differences.get(name, "")}

    rows = []
    for name, runs in results.items():
        for number, (one, base) in enumerate(zip(runs, results[FLOOR], strict=True)):
            if one is not None:
                rows.append(row(name, number, one.seconds, one.seconds / base.seconds, one.peak))
    return rows + [row(name, "refused") for name in differences if name not in results]


def main(args: argparse.Namespace) -> None:
    rows = run(args)
    tuned = args.allocator == "tuned"
    publish(args, "kernel_tuned" if tuned else "kernel", rows, text(rows, settings(args)), None if tuned else draw)


def text(rows: list[Row], setting: str) -> list[str]:
    records = Records(rows)
    return [f"{setting}.", *loss_tables(records), *sweep_tables(records), target_table(targets(records))]


def cases_of(records: Records, part: str) -> list[tuple[Records, str, str]]:
    """Rows of each case of a part, with its size and its divergence in words."""
    found = records.where(part=part)
    shapes = found.distinct(*SHAPE)
    return [
        (found.where(**dict(zip(SHAPE, shape, strict=True))), ", ".join(map(str, shape[:3])), TITLES[shape[4]])
        for shape in shapes
    ]


def loss_tables(records: Records) -> list[str]:
    losses = records.where(part="losses")
    names = [name for name in LOSSES if losses.values("seconds", contender=name)]
    times, peaks = [], []
    for case, size, title in cases_of(records, "losses"):
        ratios = (case.spread("over_floor", contender=name) for name in names)
        times.append([size, title, f"{case.median('seconds', contender=FLOOR):.2f}", *ratios])
        peaks.append([size, title, *(megabytes(case.median("peak_mb", contender=name)) for name in names)])
    made = [
        "Time of loss and backward over the matrix products (`floor`, in seconds): median (least-greatest).",
        table(["N, H, V", "kind", "floor", *names], times),
    ]
    if any(cell != "-" for row in peaks for cell in row[2:]):
        made += ["Peak memory above the inputs, MB:", table(["N, H, V", "kind", *names], peaks)]
    worst = max((row["difference"] for row in records.rows if "" not in (row["difference"], row["seconds"])), default=0)
    agreement = f"All agree with float64 autograd in value and gradients to {worst:.0e} of the greatest entry."
    refused = sorted(set(records.where(round="refused").distinct("contender")))
    return [*made, agreement + (f" Refused, as they do not: {', '.join(refused)}." if refused else "")]


def sweep_tables(records: Records) -> list[str]:
    made = []
    for part, title in (("tokens", "N"), ("vocabulary", "V"), ("views", "K")):
        rows = []
        for case, size, _ in cases_of(records, part):
            peaks = (megabytes(case.median("peak_mb", contender=name)) for name in (OURS, FULL))
            ratios = (case.spread("over_floor", contender=name) for name in (OURS, FULL))
            rows.append([size, case.rows[0]["k"], f"{case.median('seconds', contender=FLOOR):.2f}", *ratios, *peaks])
        if rows:
            header = ["N, H, V", "K", "floor (s)", "ours", "full logits", "ours (MB)", "full logits (MB)"]
            made += [f"Growth in {title}, forward KL:", table(header, rows)]
    return made


def targets(records: Records) -> list[Target]:
    made = []
    for case, size, title in cases_of(records, "losses"):
        ours, full, liger, trl = (case.median("over_floor", contender=name) for name in (OURS, FULL, LIGER, TRL))
        if ours is None:
            continue
        where, jsd = f"{title} at {size}", title == TITLES["jsd"]
        made.append(Target(f"ours over the matrix products, {where}", 1.35 if jsd else 1.25, ours))
        made.append(Target(f"TRL chunked over ours, {where}", 2.2 if jsd else 1.6, trl and trl / ours, True))
        best = min((value for value in (full, liger) if value is not None), default=None)
        made.append(Target(f"ours over the better of full logits and Liger, {where}", 1.03, best and ours / best))
        peaks = [case.median("peak_mb", contender=name) for name in (OURS, FULL)]
        if case.rows[0]["n"] == 2048 and None not in peaks:
            made.append(Target(f"peak memory of ours over full logits, {where}", 0.125, peaks[0] / peaks[1]))
    return made


def draw(records: Records, path: Path) -> None:
    made, (left, middle, right) = figure(3)
    every = cases_of(records, "losses")
    size = every[0][1]
    kinds = [(case, title) for case, of_size, title in every if of_size == size]
    names = [name for name in LOSSES if kinds[0][0].values("seconds", contender=name)]
    for axes, column, title in ((left, "over_floor", "time over the matrix products"), (middle, "peak_mb", "peak MB")):
        bars(axes, kinds, names, column)
        axes.set(title=f"{title}\nN, H, V = {size}")
    left.axhline(1, color="black", lw=1)
    logarithmic(middle)
    left.legend(fontsize="x-small", ncols=2)
    growth(right, records.where(part="tokens"))
    save(made, path)


def bars(axes: Any, kinds: list[tuple[Records, str]], names: list[str], column: str) -> None:
    width = 0.8 / len(names)
    for index, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        heights = [case.median(column, contender=name) or 0 for case, _ in kinds]
        places = [place + (index - len(names) / 2 + 0.5) * width for place in range(len(kinds))]
        axes.bar(places, heights, width * 0.9, label=name, color=colour)
    axes.set_xticks(range(len(kinds)), [title for _, title in kinds])


def growth(axes: Any, records: Records) -> None:
    """Peak memory over the number of tokens."""
    tokens = records.distinct("n")
    for name, colour in ((OURS, COLOURS[0]), (FULL, COLOURS[1])):
        points = [(n, records.median("peak_mb", n=n, contender=name)) for n in tokens]
        points = [point for point in points if point[1] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    logarithmic(axes, tokens)
    axes.set(xlabel="tokens", title="peak MB, forward KL")
    axes.legend(fontsize="x-small")
