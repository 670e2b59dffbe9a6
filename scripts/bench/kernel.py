# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
bench_kernel: time of the head and the divergence over their bare matrix products, and peak memory.

Legend: N tokens, H hidden size, V vocabulary, K views.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.losses import FULL, GKD, KINDS, LIGER, LOSSES, OURS, TRL, Floor, Inputs, contender, make_inputs
from bench.measure import Results, Worker, interleave, workers


FLOOR = "floor"
CORE = (OURS, FULL, LIGER, TRL)  # those that a target names
CHECKED_TOKENS = 72
SLOW = 1.6  # times the floor: a contender beyond it runs in one round only
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
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


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases; one row a run."""
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


def to_rows(case: Case, args: argparse.Namespace, results: Results, differences: dict[str, float]) -> list[dict]:
    """One row a run, and one without a time for each contender that was refused."""
    shape = {key: getattr(case, key) for key in ("n", "h", "v", "k", "kind")}

    def row(name: str, number: int | str, seconds: Any = "", over_floor: Any = "", peak: int | None = None) -> dict:
        return {
            "part": case.part,
            "allocator": args.allocator,
            **shape,
            "contender": name,
            "round": number,
            "seconds": seconds,
            "over_floor": over_floor,
            "peak_mb": "" if peak is None or name == FLOOR else peak / 1e6,
            "difference": differences.get(name, ""),
        }

    rows = []
    for name, runs in results.items():
        for number, (one, base) in enumerate(zip(runs, results[FLOOR], strict=True)):
            if one is not None:
                rows.append(row(name, number, one.seconds, one.seconds / base.seconds, one.peak))
    return rows + [row(name, "refused") for name in differences if name not in results]
