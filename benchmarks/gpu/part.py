# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Process of one part of the GPU check: its rows, each written down as it comes, and the time that is left to it.

python -m benchmarks.gpu.part NAME --output FOLDER --seconds N [--tiny]
"""

import argparse
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import ROOT
from benchmarks.measure import Run, measure
from benchmarks.report import Row


# Tiny models and the float64 reference are those of the tests
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "support")]


class Part:
    """
    Rows of one part, and the time that is left to it.

    Args:
        name (`str`): Its name.
        folder (`Path`): Where its rows are written, as `NAME.json`.
        seconds (`float`): Time that it may take.
        tiny (`bool`): Whether it runs in tiny sizes on the CPU, which measures nothing.
    """

    def __init__(self, name: str, folder: Path, seconds: float, tiny: bool):
        self.name, self.folder, self.tiny = name, folder, tiny
        self.device = "cpu" if tiny else "cuda"
        self.rows: list[Row] = []
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def add(self, what: str, **row: Any) -> None:
        """Write down one row."""
        self.rows.append({"what": what, **row})
        path = self.folder / f"{self.name}.json"
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.rows, indent=1, default=str) + "\n")
        os.replace(unfinished, path)
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
        print(f"  {what}: " + ", ".join(f"{key}={value}" for key, value in shown.items())[:600], flush=True)

    def attempt(self, what: str, item: Callable[[], Row | None], need: float = 0.0) -> None:
        """
        Run one item of the part, whose failure costs only itself.

        Args:
            what (`str`): Name of its row.
            item (`Callable[[], dict or None]`): Gives the row, or adds rows itself and gives `None`.
            need (`float`): Seconds without which it is not begun, except in tiny sizes.
        """
        if not self.tiny and self.left() < need:
            self.add(what, error="no time left for it")
            return
        try:
            row = item()
            if row is not None:
                self.add(what, **row)
        except Exception as error:
            lines = traceback.format_exc()[-1500:]
            self.add(what, error=f"{type(error).__name__}: {str(error)[:300]}", traceback=lines)
        if self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def timed(self, run: Callable[[], Any], repeats: int, warm: int = 1) -> Row:
        """Median, least and greatest seconds of `repeats` runs, and the peak in MB above what was there before."""
        for _ in range(warm):
            run()
        runs: list[Run] = [measure(run, self.device) for _ in range(repeats)]
        seconds = sorted(one.seconds for one in runs)
        peaks = [one.peak / 1e6 for one in runs if one.peak is not None]
        middle = seconds[len(seconds) // 2]
        return {"seconds": middle, "least": seconds[0], "most": seconds[-1], "peak_mb": max(peaks, default=None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        torch.set_num_threads(1)  # the fastest for tiny tensors
    gc.freeze()  # what the imports left is not looked through before each measurement
    part = Part(args.name, args.output, args.seconds, args.tiny)
    importlib.import_module(f"benchmarks.gpu.{args.name}").run(part)


if __name__ == "__main__":
    main()
