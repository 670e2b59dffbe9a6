# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Environment and machine of a benchmark. Nothing here imports torch before the environment is right."""

import argparse
import os
import platform
import sys
from importlib import metadata
from pathlib import Path


ROOT = Path(__file__).parents[1]

# glibc gives each large array fresh pages from the kernel and returns them when it is freed, so that every large
# temporary array pays for its page faults again. Beyond these sizes (bytes) it would, so that with them it never does.
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(2**36), "MALLOC_TRIM_THRESHOLD_": str(2**36)}
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
}


def prepare(args: argparse.Namespace) -> None:
    """
    Set the environment that a benchmark needs. Where time is measured the process starts anew if it has another one, as
    allocator and OpenMP read theirs at the start.
    """
    # One device: with several visible, the Trainer would try nn.DataParallel
    wanted = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    if "repeats" not in args:
        os.environ.update(wanted | {"TOKENIZERS_PARALLELISM": "false"})
        return
    wanted |= {**QUIET, "OMP_NUM_THREADS": str(args.threads)} | (TUNED if args.allocator == "tuned" else {})
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})
    args.device = args.device or default_device()
    if args.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, where it is installed, warns that it finds no other
    args.output.mkdir(parents=True, exist_ok=True)


def default_device() -> str:
    # NVML and not CUDA is asked: the contenders' processes are forked off this one, which must not have started CUDA
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def machine(device: str) -> str:
    """The machine behind the figures, as one line of Markdown."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    chip = f"{cpu_name()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory"
    if device.startswith("cuda"):
        import torch

        chip = f"{torch.cuda.get_device_name()}; {chip}"
    return f"{chip}; {platform.system()}, Python {platform.python_version()}, {versions}"


def settings(args: argparse.Namespace) -> str:
    """Settings behind the figures of one table."""
    threads = "1 thread" if args.threads == 1 else f"{args.threads} threads"
    return f"{threads}, {args.dtype}, {args.device}, {args.allocator} allocator, {args.repeats} rounds"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
