# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Environment report: versions against their bounds, devices and disk, each with a remedy: `trl-opsd doctor`."""

import argparse
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from trl_opsd import __version__


LOW_DISK = 20  # GB


@dataclass(frozen=True)
class Finding:
    """
    One line of the report.

    Args:
        subject (`str`): A package, or a property of the machine.
        seen (`str`): Its value.
        remedy (`str`): How to mend it; empty where nothing is to be done.
        fatal (`bool`): Whether training cannot work before that.
    """

    subject: str
    seen: str
    remedy: str = ""
    fatal: bool = False


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output_dir", type=Path, default=Path("."), help="where models will go: is there room on disk?"
    )


def packages() -> Iterator[Finding]:
    """Installed versions against the bounds of the package's own requirements."""
    try:
        needs = [Requirement(text) for text in requires("trl-opsd") or ()]
    except PackageNotFoundError:
        yield Finding("trl-opsd", "not installed", "pip install -e . in the checkout", fatal=True)
        return
    for need in needs:
        extra = next((one for one in ("vllm", "deepspeed") if need.marker and f'"{one}"' in str(need.marker)), None)
        if need.marker and not extra:
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            remedy = (
                f"optional: pip install 'trl-opsd[{extra}]'" if extra else f"pip install '{need.name}{need.specifier}'"
            )
            yield Finding(need.name, "not installed", remedy, fatal=not extra)
            continue
        fits = need.specifier.contains(found, prereleases=True)
        remedy = "" if fits else f"pip install '{need.name}{need.specifier}'"
        yield Finding(need.name, f"{found} ({need.specifier})", remedy, fatal=not fits)


def devices() -> Iterator[Finding]:
    """Accelerators, their memory, bf16 and NCCL."""
    import torch

    if not torch.cuda.is_available():
        installed = shutil.which("nvidia-smi") is not None
        remedy = "torch sees none of this machine's GPUs: install its CUDA build" if installed else ""
        yield Finding("GPUs", "none", remedy or "runs on the CPU: recipes of smollm2, with bf16: false")
        yield Finding("CPU threads", str(torch.get_num_threads()))
        return
    for i in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(i))
        used = total - free > 0.1 * total
        remedy = "another process holds memory there: nvidia-smi shows it" if used else ""
        yield Finding(f"GPU {i}", f"{torch.cuda.get_device_name(i)}, {free:.0f} of {total:.0f} GB free", remedy)
    bf16 = torch.cuda.is_bf16_supported()
    yield Finding("bf16", "yes" if bf16 else "no", "" if bf16 else "set bf16: false and fp16: true")
    if torch.cuda.device_count() > 1:
        nccl = torch.distributed.is_nccl_available()
        where = ".".join(map(str, torch.cuda.nccl.version())) if nccl else "missing"
        yield Finding("NCCL", where, "" if nccl else "install the CUDA build of torch", fatal=not nccl)


def machine(output_dir: Path) -> Iterator[Finding]:
    """Python, disk and the Hub."""
    right = sys.version_info >= (3, 11)
    yield Finding("Python", platform.python_version(), "" if right else "use Python 3.11 or later", fatal=not right)
    there = next(folder for folder in (output_dir.resolve(), *output_dir.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    remedy = "" if free >= LOW_DISK else "a checkpoint of all weights takes 16 bytes a weight: make room"
    yield Finding("disk", f"{free:.0f} GB free in {there}", remedy)
    if importlib.util.find_spec("huggingface_hub"):
        from huggingface_hub import get_token

        login = get_token() is not None
        yield Finding(
            "Hub login", "yes" if login else "no", "" if login else "to push or for gated models: hf auth login"
        )


def run(args: argparse.Namespace) -> None:
    """Print the report; exit code 1 where training cannot work."""
    found = [Finding("trl-opsd", __version__), *machine(args.output_dir), *packages(), *devices()]
    widest = max(len(one.subject) for one in found)
    for one in found:
        print(f"{'!!' if one.fatal else '  '} {one.subject:<{widest}}  {one.seen}")
        if one.remedy:  # whole on a line of its own, to be copied
            print(f"   {'':<{widest}}  -> {one.remedy}")
    wrong = [one for one in found if one.fatal]
    print(f"\n{len(wrong)} to mend before training." if wrong else "\nReady to train.")
    if wrong:
        sys.exit(1)
