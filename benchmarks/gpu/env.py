# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Part `env`: versions, the card, and its ceilings: bandwidth of a copy and rate of a matrix product."""

import datetime
import platform
import subprocess
import tomllib
from importlib import metadata

import torch

from benchmarks.environment import ROOT, cpu_name
from benchmarks.gpu.part import Part
from benchmarks.report import Row


PACKAGES = ("torch", "triton", "transformers", "accelerate", "peft", "trl", "datasets", "liger-kernel", "numpy")
QUERY = "name,driver_version,memory.total,clocks.max.sm,power.limit"


def run(part: Part) -> None:
    part.add("versions", **versions())
    part.add("machine", **machine(part))
    if part.device == "cuda":
        part.attempt("ceilings", lambda: ceilings(part))
    part.attempt("product with float32 result", lambda: float32_product(part))


def versions() -> Row:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {**found, "trl-opsd": project["version"]}


def machine(part: Part) -> Row:
    made = {"date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC", "kernel": platform.release()}
    if part.device == "cpu":
        return {**made, "card": None, "cpu": cpu_name()}
    smi = subprocess.run(
        ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"], capture_output=True, text=True
    )
    first = (smi.stdout.strip().split("\n")[0]).split(", ")
    found = dict(zip(QUERY.split(","), first, strict=False))
    properties = torch.cuda.get_device_properties(0)
    return {
        **made,
        "card": torch.cuda.get_device_name(0),
        "driver": found.get("driver_version"),
        "memory_gib": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": properties.L2_cache_size / 2**20,
        "nvidia_smi": ", ".join(first),
        "cuda": torch.version.cuda,
        "cpu": cpu_name(),
    }


def ceilings(part: Part) -> Row:
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copied = part.timed(lambda: target.copy_(source), 10)["seconds"]
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    multiplied = part.timed(lambda: left @ right, 10, warm=3)["seconds"]
    return {"copy_tb_s": 2 * source.numel() / copied / 1e12, "bf16_tflop_s": 2 * 8192**3 / multiplied / 1e12}


def float32_product(part: Part) -> Row:
    """The sum of the head's gradient: a product of half precision that is added in float32, in place."""
    if part.device == "cpu":
        return {"skipped": "a CPU has none"}
    total, gradient, states = (torch.randn(shape, device="cuda") for shape in ((512, 64), (32, 512), (32, 64)))
    gradient, states = gradient.bfloat16(), states.bfloat16()
    want = total.double() + gradient.double().T @ states.double()
    torch.addmm(total, gradient.T, states, out_dtype=torch.float32, out=total)
    return {"relative_error": float((total - want).norm() / want.norm())}
