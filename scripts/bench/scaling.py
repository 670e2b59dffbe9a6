# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
bench_scaling: how the training part of a step grows with tokens, context, views and processes, and how the memory of
the loss does with tokens and vocabulary.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.losses import LOSSES, OURS, contender, make_inputs
from bench.measure import interleave, workers
from bench.rollouts import Model, Scenario, from_folder, smollm2_135m
from bench.trainers import Window, numbered
from trl_opsd.kernels.chunks import budget


ROWS = 4
LIVE = {"teacher_model_kind": "live"}


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


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
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


def row(part: str, detail: str, x: float, number: int, seconds: float, **memory: float) -> dict[str, Any]:
    return {
        "part": part,
        "detail": detail,
        "x": x,
        "round": number,
        "seconds": seconds,
        **dict.fromkeys(("peak_mb", "beyond_gradients_mb", "budget_mb"), ""),
        **memory,
    }


def memory_of_loss(args: argparse.Namespace) -> list[dict[str, Any]]:
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


def processes(args: argparse.Namespace) -> list[dict[str, Any]]:
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
    command += ["-m", "bench.rank", folder, json.dumps(options)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{count} processes failed:\n{done.stderr[-3000:]}")
