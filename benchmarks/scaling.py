# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Scaling benchmark: growth of the training part of a step with tokens, context, views and processes, and of the loss's
memory with tokens and vocabulary. For two processes it starts itself under torchrun.
"""

import argparse
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import ROOT, settings
from benchmarks.losses import LOSSES, OURS, contender, make_inputs
from benchmarks.measure import interleave, measure, workers
from benchmarks.report import COLOURS, Records, Row, Target, figure, megabytes, publish, save, table, target_table
from benchmarks.rollouts import Model, Scenario, from_folder, smollm2_135m
from benchmarks.trainers import Window, numbered
from trl_opsd.kernels.chunks import budget


ROWS = 4
LIVE = {"teacher_model_kind": "live"}
KINDS = {"GRPO": ("GRPO", {}), "pure, live": ("OPSD", LIVE)}  # those that run in two processes
GROWTH = ("completion", "context", "shared context", "views")  # series whose time is fitted
LINEAR = 1.1  # the greatest exponent that still passes for linear
FLAT = 1.1


def load(model: str | None, dtype: str) -> Model:
    kind = getattr(torch, dtype)
    return from_folder(model, kind, Path(model).name) if model else smollm2_135m(kind)


def series(quick: bool) -> dict[str, list[tuple[Scenario, int]]]:
    """Scenarios and numbers of views, by what grows."""
    short, middle = ((3, 3), (2, 2)) if quick else ((48, 48), (32, 32))
    lengths = (3, 6) if quick else (24, 48, 96)
    contexts = (2, 8) if quick else (32, 128, 512)
    counts = (1, 2) if quick else (1, 2, 4)
    base = {"rows": ROWS, "batch": ROWS, "prompt": (2, 2) if quick else (24, 24)}
    return {
        "completion": [(Scenario(**base, completion=(n, n), context=middle), 1) for n in lengths],
        "context": [(Scenario(**base, completion=short, context=(n, n)), 1) for n in contexts],
        "shared context": [(Scenario(**base, completion=short, context=(n, n), group=ROWS), 1) for n in contexts],
        "views": [(Scenario(**base, completion=short, context=middle), k) for k in counts],
    }


def run(args: argparse.Namespace) -> list[Row]:
    rows = memory_of_loss(args)
    model = load(args.model, args.dtype)
    for name, members in series(args.quick).items():
        print(f"growth with {name} ...", flush=True)
        builds = {
            f"{number}": partial(Window, "OPSD", model, scenario, args.device, views=numbered(views), **LIVE)
            for number, (scenario, views) in enumerate(members)
        }
        with workers(builds, args.threads, args.device) as made:
            results = interleave(made, args.repeats, "0")
        for (scenario, views), (_, runs) in zip(members, results.items(), strict=True):
            x = round(model.operations(runs[0].answer, views) / 1e9, 3)
            detail = f"completion {scenario.completion[1]}, context {scenario.context[1]}, views {views}"
            rows += [row(name, detail, x, number, one.seconds) for number, one in enumerate(runs)]
    return rows + processes(args)


def row(part: str, detail: str, x: float, number: int, seconds: float, **memory: float) -> Row:
    made = {"part": part, "detail": detail, "x": x, "round": number, "seconds": seconds}
    return made | dict.fromkeys(("peak_mb", "beyond_gradients_mb", "budget_mb"), "") | memory


def memory_of_loss(args: argparse.Namespace) -> list[Row]:
    """Peak memory of the loss, and what of it is not the gradients of hidden states and head. All cores take part."""
    h = 16 if args.quick else 576
    tokens, sizes = ((32, 64), (256, 512)) if args.quick else ((1024, 2048, 4096), (32768, 151936, 262144))
    shapes = [("loss, tokens", n, sizes[0]) for n in tokens] + [("loss, vocabulary", tokens[0], v) for v in sizes]
    rows = []
    for part, n, v in shapes:
        print(f"memory of the loss: N={n} V={v} ...", flush=True)
        inputs = make_inputs(n, h, v, dtype=getattr(torch, args.dtype))

        def build(x: Any = inputs) -> Any:
            contender(LOSSES[OURS], x.head(2).to(args.device), "forward_kl")()
            return contender(LOSSES[OURS], x.to(args.device), "forward_kl")

        with workers({OURS: build}, os.cpu_count(), args.device) as made:
            one = made[OURS].run(OURS)
        memory = {}
        if one.peak is not None:
            beyond = one.peak - inputs.hidden.nbytes - inputs.weight.nbytes
            room, _ = budget(torch.device(args.device))
            memory = {"peak_mb": one.peak / 1e6, "beyond_gradients_mb": beyond / 1e6, "budget_mb": room / 1e6}
        x = n if part == "loss, tokens" else v
        rows.append(row(part, f"N {n}, V {v}", x, 0, one.seconds, **memory))
    return rows


def processes(args: argparse.Namespace) -> list[Row]:
    """Seconds of a micro-batch in each process, for one process and for two under DDP, each with its own rows."""
    rows = []
    if args.device != "cpu":
        return rows  # the benchmark holds one GPU
    for count in (2,) if args.quick else (1, 2):
        print(f"{count} process{'es' if count > 1 else ''} ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            launch(args, count, folder)
            for rank in range(count):
                for name, values in json.loads((Path(folder) / f"{rank}.json").read_text()).items():
                    part, detail = f"processes, {name}", f"rank {rank} of {count}"
                    rows += [row(part, detail, count, number, value) for number, value in enumerate(values)]
    return rows


def launch(args: argparse.Namespace, count: int, folder: str) -> None:
    options = {key: getattr(args, key) for key in ("model", "dtype", "threads", "repeats", "device", "quick")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command += ["-m", "benchmarks.scaling", folder, json.dumps(options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{count} processes failed:\n{done.stderr[-3000:]}")


def time_rank(folder: str, options: dict[str, Any]) -> None:
    """Write the seconds of a micro-batch of each trainer in turn, in one of the processes that `launch` starts."""
    torch.set_num_threads(options["threads"])
    model = load(options["model"], options["dtype"])
    scenario, _ = series(options["quick"])["views"][0]
    windows = {}
    for name, (kind, extra) in KINDS.items():
        own = Model(model.name, copy.deepcopy(model.model), model.tokenizer)  # TRL patches the model that it is given
        windows[name] = Window(kind, own, scenario, options["device"], **extra)
    seconds: dict[str, list[float]] = {name: [] for name in windows}
    for _ in range(options["repeats"] + 1):
        for name, window in windows.items():
            seconds[name].append(measure(window, options["device"], trim=False).seconds)
    rounds = {name: values[1:] for name, values in seconds.items()}  # the first pays for what is set up once
    (Path(folder) / f"{os.environ['RANK']}.json").write_text(json.dumps(rounds))


def main(args: argparse.Namespace) -> None:
    rows = run(args)
    model = Path(args.model).name if args.model else "SmolLM2-135M"
    setting = f"{settings(args)}; pure distillation with a live teacher, {model}, {ROWS} rows in a micro-batch"
    publish(args, "scaling", rows, text(Records(rows), setting), draw)


def text(records: Records, setting: str) -> list[str]:
    return [
        f"{setting}.",
        "Time over the operations of the matrix products, by counts; a context that is shared counts for each row:",
        growth_table(records),
        "Memory of the loss alone, forward KL, H = 576:",
        memory_table(records),
        "Processes under DDP (gloo), each with its own rows; efficiency is the time of one over the time of several:",
        process_table(records),
        target_table(targets(records)),
    ]


def curve(records: Records, part: str, column: str) -> dict[float, float]:
    """Median over rounds and processes by x: 10^9 operations of a window, or the number that a part is named after."""
    found = records.where(part=part)
    points = {x: found.median(column, x=x) for x in sorted(found.distinct("x"))}
    return {x: value for x, value in points.items() if value is not None}


def exponent(points: dict[float, float]) -> float:
    """Slope of log y over log x by least squares: 1 is linear, less is linear with a constant part beside it."""
    x, y = (list(map(math.log, numbers)) for numbers in (points.keys(), points.values()))
    return statistics.linear_regression(x, y).slope


def growth_table(records: Records) -> str:
    lines = []
    for part in GROWTH:
        points = curve(records, part, "seconds")
        for x in points:
            found = records.where(part=part, x=x)
            fit = f"{exponent(points):.2f}" if x == max(points) else ""
            lines.append([part, found.rows[0]["detail"], f"{x:,.0f}", found.spread("seconds"), fit])
    return table(["what grows", "of a row", "10^9 operations", "seconds", "exponent"], lines)


def memory_table(records: Records) -> str:
    lines = [
        [row["detail"], *(megabytes(row[column] or None) for column in ("peak_mb", "beyond_gradients_mb"))]
        for row in records.rows
        if row["part"].startswith("loss")
    ]
    return table(["loss and backward", "peak MB above the inputs", "of it beyond the gradients"], lines)


def process_table(records: Records) -> str:
    lines = []
    for name in KINDS:
        part = f"processes, {name}"
        points = curve(records, part, "seconds")
        for count, seconds in points.items():
            efficiency = f"{points[1] / seconds:.2f}" if 1 in points else "-"
            lines.append([name, count, records.spread("seconds", part=part, x=count), efficiency])
    return table(["trainer", "processes", "seconds of a micro-batch in each", "efficiency"], lines)


def targets(records: Records) -> list[Target]:
    made = []
    for part in GROWTH:
        fit = exponent(curve(records, part, "seconds"))
        made.append(Target(f"exponent of time over operations, {part} grows (1 is linear)", LINEAR, fit))
    tokens, vocabulary = (curve(records, f"loss, {part}", "beyond_gradients_mb") for part in ("tokens", "vocabulary"))
    if tokens:
        first, last = min(tokens), max(tokens)
        what = f"growth of the loss's memory beyond its gradients, N from {first:,} to {last:,} (1 is flat)"
        made.append(Target(what, FLAT, tokens[last] / tokens[first]))
        most, room = max(vocabulary), records.rows[0]["budget_mb"]
        what = f"the loss's memory beyond its gradients at V = {most:,}, over a fixed {room:.0f} MB for logits"
        made.append(Target(what, FLAT, vocabulary[most] / room))
    return made


def draw(records: Records, path: Path) -> None:
    made, (left, right) = figure(2, width=5)
    for part, colour in zip(GROWTH, COLOURS, strict=False):
        points = curve(records, part, "seconds")
        line(left, points, f"{part}, exponent {exponent(points):.2f}", colour)
    left.set(xlabel="10^9 operations of a window, by counts", title="seconds of a window")
    left.set_xlim(left=0)
    line(right, curve(records, "loss, tokens", "peak_mb"), "peak", "tab:grey")
    line(right, curve(records, "loss, tokens", "beyond_gradients_mb"), "of it beyond the gradients", "tab:red")
    right.set(xlabel="tokens", title="MB of the loss alone")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
    save(made, path)


def line(axes: Any, points: dict[float, float], label: str, colour: str) -> None:
    axes.plot(list(points), list(points.values()), "o-", label=label, color=colour)


if __name__ == "__main__":
    time_rank(sys.argv[1], json.loads(sys.argv[2]))
