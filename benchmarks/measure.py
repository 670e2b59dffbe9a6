# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Seconds and peak memory of contenders that run in turn, each in a process of its own.

The processes are forked off one that has imported everything and made the inputs, so that they start at once, share the
inputs' memory, and none sees what another left behind: caches, patched modules, a heap with holes.
"""

import ctypes
import gc
import multiprocessing
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


Contender = Callable[[], Any]
_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD


@dataclass
class Timed:
    """Result of a contender that has timed itself."""

    seconds: float
    answer: Any = None


@dataclass
class Run:
    """One run of a contender; `peak` is in bytes above what was there before, `None` where it was not measured."""

    seconds: float
    peak: int | None = None
    answer: Any = None


class Worker:
    """
    A process that holds contenders and runs one when asked.

    Args:
        build (`Callable[[], dict[str, Contender]]`): Makes them, there.
        threads (`int`): Threads of torch.
        device (`str`): What is measured.
        trim (`bool`): Whether freed memory goes back to the system before each run, which the peak needs and an
            allocator that is tuned to keep it does not want.
    """

    def __init__(self, build: Callable[[], dict[str, Contender]], threads: int, device: str, trim: bool = True):
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, build, threads, device, trim), daemon=True)
        self.process.start()
        other.close()

    def run(self, name: str) -> Run:
        self.pipe.send(name)
        return self._answer()

    def _answer(self) -> Run:
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError("A contender's process died: too little memory?") from None
        if isinstance(answer, str):
            raise RuntimeError(f"A contender failed.\n{answer}")
        return answer

    def close(self) -> None:
        with suppress(OSError):  # of a process that died
            self.pipe.send(None)  # closing would not do: processes forked later hold the pipe open too
        self.process.join()


def _serve(pipe: Any, build: Callable, threads: int, device: str, trim: bool) -> None:
    torch.set_num_threads(threads)
    gc.freeze()  # what the imports left is not looked through again
    contenders = None
    with suppress(EOFError, KeyboardInterrupt):
        while (name := pipe.recv()) is not None:
            try:
                contenders = build() if contenders is None else contenders
                pipe.send(measure(contenders[name], device, trim))
            except Exception:
                pipe.send(traceback.format_exc())
            if trim:
                _trim()  # others run now


def measure(contender: Contender, device: str, trim: bool = True) -> Run:
    """
    Run once.

    Peak memory on the CPU is the high-water mark of the resident set, which the kernel lets a process reset, minus the
    resident set before the run. It is that of the arrays alone where each is mapped by itself: see [`map_arrays`].
    """
    gc.collect()
    before = _reset_peak(device) if trim else None
    _wait(device)
    start = time.perf_counter()
    answer = contender()
    _wait(device)
    timed = answer if isinstance(answer, Timed) else Timed(time.perf_counter() - start, answer)
    return Run(timed.seconds, None if before is None else _peak(device) - before, timed.answer)


def map_arrays() -> None:
    """
    From now on the allocator maps each array of 128 KiB or more by itself, and unmaps it when it is freed. By default
    glibc raises that threshold, up to 32 MiB, as arrays are freed; those below lie in a heap whose holes count too.
    """
    with suppress(AttributeError):  # of a system without it
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 128 * 1024)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _reset_peak(device: str) -> int | None:
    """Forget the peak so far; bytes in use now, or `None` where the system can't tell."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        _trim()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _resident("VmRSS")


def _trim() -> None:
    """Give memory that is free back to the system."""
    with suppress(AttributeError):  # of a system without it
        ctypes.CDLL(None).malloc_trim(0)


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else _resident("VmHWM")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


Results = dict[str, list[Run | None]]  # runs of each contender by round; `None` where it sat out


def interleave(
    workers: dict[str, Worker], rounds: int, reference: str, slow: float = float("inf"), always: str | None = None
) -> Results:
    """
    All contenders in turn, `rounds` times; each round starts with another one.

    Those that took more than `slow` times the reference's time in the first round sit out the others: they would be
    most of the benchmark's time, for figures that no target turns on. `always` never does.
    """
    results: Results = {name: [] for name in workers}
    names = list(workers)
    for number in range(rounds):
        turn = number * len(names) // rounds
        for name in names[turn:] + names[:turn]:
            late = number and name != always and results[name][0].seconds > slow * results[reference][0].seconds
            results[name].append(None if late else workers[name].run(name))
    return results


@contextmanager
def workers(builds: dict[str, Callable[[], Contender]], threads: int, device: str, trim: bool = True):
    """A worker for each contender; without `trim` one for all, so that they share what the allocator keeps."""
    if trim:
        made = {name: Worker(lambda n=name, b=build: {n: b()}, threads, device) for name, build in builds.items()}
    else:
        one = Worker(lambda: {name: build() for name, build in builds.items()}, threads, device, trim=False)
        made = dict.fromkeys(builds, one)
    try:
        yield made
    finally:
        for worker in set(made.values()):
            worker.close()
