# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Waits of the host for the device, and the share of the time that the device is busy."""

import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import Row


def synchronisations(run: Callable[[], Any]) -> Row:
    """Calls that wait for the device, by the file and line that make them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in caught if "synchroniz" in str(one.message)]
    places = Counter(f"{Path(one.filename).name}:{one.lineno}" for one in waits)
    return {"synchronisations": len(waits), "synchronised_at": dict(places.most_common(12))}


def busy(run: Callable[[], Any], device: str) -> Row:
    """Seconds that the device works out of those that a run takes, launches, and the kernels that take most."""
    on_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        start = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    column = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, column))
    events = [event for event in events if getattr(event, column) > 0]
    seconds = sum(getattr(event, column) for event in events) / 1e6
    return {
        "profiled_seconds": wall,
        "busy_share": seconds / wall,
        "launches": sum(event.count for event in events),
        "top": [[event.key[:80], event.count, getattr(event, column) / 1e3] for event in events[:12]],  # milliseconds
    }
