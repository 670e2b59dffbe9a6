# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Runner of the GPU check: one process after the other, each with its share of the time; then the report."""

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from benchmarks.environment import QUIET, ROOT


# Part: its share of the time
PARTS = {"env": 0.05, "values": 0.20, "kernel": 0.35, "step": 0.24, "train": 0.09, "dist": 0.07}
LEAST_SECONDS = 5.0  # a part with less is not started
TINY_SECONDS = 600.0  # for a part in tiny sizes, on a CPU that may be busy
MARGIN_SECONDS = 2.0  # between the time that a part plans with and the end of its process


def main(args: argparse.Namespace) -> None:
    """Run the parts and write the report, or with `args.publish` put results that are there into the docs."""
    if args.publish:
        reported().publish(args.output)
        return
    args.output = args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + args.seconds
    names = [name for name in PARTS if name in (args.only or PARTS)]
    for number, name in enumerate(names):
        share = PARTS[name] / sum(PARTS[later] for later in names[number:])
        seconds = TINY_SECONDS if args.tiny else share * (end - time.monotonic())
        if seconds < LEAST_SECONDS:
            print(f"{name}: no time left for it.", flush=True)
            continue
        print(f"{name}: {seconds:.0f} s at most ...", flush=True)
        run_part(name, args.output, seconds, args.tiny)
    reported().write(args.output)


def reported() -> ModuleType:
    """The module of the report, which imports torch: seconds that the parts need not wait for."""
    return importlib.import_module("benchmarks.gpu.report")


def run_part(name: str, output: Path, seconds: float, tiny: bool) -> None:
    """One part in a process of its own, which a deadline ends with all that it has started."""
    command = [sys.executable, "-m", "benchmarks.gpu.part", name, "--output", str(output)]
    command += ["--seconds", f"{seconds - MARGIN_SECONDS:.0f}", *(["--tiny"] if tiny else [])]
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **QUIET, "PYTHONPATH": search} | ({"CUDA_VISIBLE_DEVICES": ""} if tiny else {})
    (output / f"{name}.json").unlink(missing_ok=True)  # of an earlier run
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped at its deadline.", flush=True)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    print(f"{name}: status {process.returncode} after {time.monotonic() - start:.0f} s.", flush=True)
