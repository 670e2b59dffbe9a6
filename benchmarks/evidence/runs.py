# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Runner of experiments on the lab model, with one JSON file a run:

python -m benchmarks lab
python -m benchmarks evidence turns joint --seeds 1 2 3
python -m benchmarks evidence --table

A finished run is not repeated unless its options, the lab model or the sizes are others; a failed one is. Contenders
that several experiments name are run once.
"""

import argparse
import gc
import hashlib
import re
from typing import Any

import torch

from benchmarks.evidence.experiments import CONTENDERS, EXPERIMENTS
from benchmarks.evidence.tables import report
from benchmarks.evidence.training import COMMON, Contender, Lab
from benchmarks.kept import kept


def file_name(name: str, seed: int) -> str:
    return f"{re.sub(r'[^a-z0-9.]+', '_', name.lower())}-{seed}.json"


def key_of(name: str, seed: int, lab: Lab) -> dict[str, Any]:
    """What makes a run another one."""
    weights = hashlib.sha256((lab.folder / "model.safetensors").read_bytes()).hexdigest()[:12]
    return {
        "contender": name, "seed": seed, "task": lab.task, "steps": lab.steps, "problems": lab.problems,
        "model": weights, "learning_rate": COMMON["learning_rate"], "phases": CONTENDERS[name],
    }  # fmt: skip


def names_of(experiments: list[str], chosen: list[str] | None) -> list[str]:
    """Contenders of experiments, each once; only those that begin with one of the chosen words."""
    found = [EXPERIMENTS[one] for one in experiments]
    names = dict.fromkeys(name for one in found for name in (one.baseline, *one.contenders))
    return [name for name in names if chosen is None or name.startswith(tuple(chosen))]


def run(name: str, seed: int, lab: Lab) -> dict[str, Any]:
    torch.manual_seed(seed)
    return Contender(lab, seed).run(CONTENDERS[name])


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    for name in args.experiments:
        if name not in EXPERIMENTS:
            raise SystemExit(f"There is no experiment {name!r}: it must be one of {list(EXPERIMENTS)}.")
    experiments = args.experiments or list(EXPERIMENTS)
    lab = Lab(args.model, args.task, args.problems, args.steps)
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in [] if args.table else args.seeds:
        for name in names_of(experiments, args.contenders):
            path = args.output / file_name(name, seed)
            print(f"{name}, seed {seed}", flush=True)
            result = kept(path, key_of(name, seed, lab), lambda name=name, seed=seed: run(name, seed, lab))
            print(result.get("error") or result["scores"], flush=True)
            gc.collect()
    print(report(args.output, experiments))
