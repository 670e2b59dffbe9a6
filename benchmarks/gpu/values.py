# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Part `values`: loss, gradients and statistics of every spec of the tests against their dense float64 reference.

In each type an error may be three times that of the same computation on the CPU. Uncompiled first, which is quick; then
compiled, which takes seconds for each spec.
"""

import dataclasses
import statistics
from typing import Any

import torch

import kernel_cases
from benchmarks.gpu.contenders import compilation
from benchmarks.gpu.part import Part
from benchmarks.report import Row
from trl_opsd.kernels import PolicyTerm, fused_linear_divergence
from trl_opsd.losses import DivergenceSpec


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALL, LARGE = (10, 11), (300, 4096)  # N, V; the second has the tokens from which a chunk is compiled
POLICY = PolicyTerm(lambda logps, entropies: -(logps.mean() + 0.05 * entropies.mean()), 0.9)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "soft-cap": {"transform": {"scale": 0.7, "softcap": 2.0}},
    "policy": {"policy": POLICY},
}
MOST = 3.0  # times the error on the CPU
Outcome = tuple[list[torch.Tensor], dict[str, torch.Tensor]]  # loss and gradients; statistics


def run(part: Part) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = [SMALL] if part.tiny else [SMALL, LARGE]
    plan = [(False, size, dtype, tuple(VARIANTS)) for size in sizes for dtype in DTYPES]
    if not part.tiny:
        half, single, other = torch.bfloat16, torch.float32, torch.float16
        plan += [(True, LARGE, dtype, ("plain",)) for dtype in (half, single, other)]
        plan += [(True, LARGE, half, ("policy", "soft-cap"))]
    for compiled, size, dtype, variants in plan:
        name = f"{'compiled' if compiled else 'uncompiled'}, {str(dtype).removeprefix('torch.')}, N, V = {size}"
        part.attempt(name, lambda case=(compiled, size, dtype, variants): compare(part, *case), need=3)
    for kind in ("forward_kl", "reverse_kl", "jsd", "skew_kl"):
        part.attempt(f"{kind}: teacher equals student", lambda kind=kind: agreement(part, kind))


def compare(part: Part, compiled: bool, size: tuple[int, int], dtype: torch.dtype, variants: tuple[str, ...]) -> Row:
    torch._dynamo.reset()  # or the specs of several rows would exceed its limit
    worst, gradients, worse, done = [0.0, 0.0, 0.0], [], [], 0
    cases = [(name, variant) for variant in variants for name in kernel_cases.SPECS]
    for name, variant in cases:
        if not part.tiny and part.left() < 2:
            break
        spec = kernel_cases.SPECS[name]
        case = kernel_cases.make(n=size[0], v=size[1], k=2, dtype=dtype, **VARIANTS[variant])
        exact = doubled(case)
        loss, stats = exact.expected(spec)
        want = [loss.detach(), *torch.autograd.grad(loss, exact.leaves())], stats
        with compilation(compiled):
            here, on_cpu = (errors(outcome(moved(case, device), spec), want) for device in (part.device, "cpu"))
        worst = [max(old, new if new == new else float("inf")) for old, new in zip(worst, here, strict=True)]
        gradients.append(here[1])
        if not all(one <= MOST * other + 1e-5 for one, other in zip(here, on_cpu, strict=True)):  # nan is worse too
            worse.append({"spec": name, "variant": variant, "errors": here, "errors_on_cpu": on_cpu})
        done += 1
    return {
        "cases": f"{done} of {len(cases)}",
        "loss": worst[0],
        "gradients": worst[1],
        "median_gradient": statistics.median(gradients) if gradients else None,
        "statistics": worst[2],
        "worse_than_cpu": len(worse),
        "worse": worse[:6],
    }


def tensors(case: kernel_cases.Case) -> dict[str, torch.Tensor]:
    values = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def moved(case: kernel_cases.Case, device: str) -> kernel_cases.Case:
    """Copy of a case on a device."""
    made = {name: one.detach().to(device).requires_grad_(one.requires_grad) for name, one in tensors(case).items()}
    return dataclasses.replace(case, **made)


def doubled(case: kernel_cases.Case) -> kernel_cases.Case:
    """Copy of a case on the CPU in float64."""
    floats = {name: one for name, one in tensors(case).items() if one.is_floating_point()}
    made = {name: one.detach().cpu().double().requires_grad_(one.requires_grad) for name, one in floats.items()}
    return dataclasses.replace(moved(case, "cpu"), **made)


def outcome(case: kernel_cases.Case, spec: DivergenceSpec) -> Outcome:
    loss, stats = case.run(spec)
    return [loss.detach(), *torch.autograd.grad(loss, case.leaves())], stats


def errors(got: Outcome, want: Outcome) -> tuple[float, float, float]:
    """Relative error of the loss, the greatest of a gradient, and the greatest difference of a finite statistic."""
    relative = [distance(one, other) for one, other in zip(got[0], want[0], strict=True)]
    gaps = [0.0]
    for name, value in want[1].items():
        finite = torch.isfinite(value).cpu()
        gaps += (got[1][name].double().cpu() - value.double().cpu())[finite].abs().flatten().tolist()
    return relative[0], max(relative[1:]), max(gaps)


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    want = want.double().cpu()
    return float((got.double().cpu() - want).norm() / want.norm().clamp(min=1e-30))


def agreement(part: Part, kind: str) -> Row:
    """A teacher that is the student gives no gradient at all, compiled or not."""
    greatest = {}
    for compiled in (False,) if part.tiny else (False, True):
        torch.manual_seed(0)
        hidden = torch.randn(300, 32, device=part.device, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(1000, 32, device=part.device, dtype=torch.bfloat16)
        spec = DivergenceSpec(kind, **({"alpha": 0.5} if kind in ("jsd", "skew_kl") else {}))
        with compilation(compiled):
            fused_linear_divergence(hidden, weight, hidden.detach(), spec=spec)[0].backward()
        greatest["compiled" if compiled else "uncompiled"] = float(hidden.grad.abs().max())
    return {"greatest_gradient": max(greatest.values()), **greatest}
