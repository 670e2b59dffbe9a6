# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Tables of what the formulas give. 1 GB is 1e9 bytes."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.report import table
from sizing import memory, plans, speed
from sizing.setup import TEACHERS, Setup
from sizing.shapes import SHAPES
from sizing.speed import Hardware


if TYPE_CHECKING:  # it needs torch
    from sizing.checks import Check


LABEL = "Computed, not measured."
START = "=== checks ==="  # after what libraries print
# Columns of the wide tables, and the parts in each
COLUMNS = {
    "weights": ("weights",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer", "float32 gradients"),
    "teacher": ("teacher", "lending the teacher's weights", "teacher's head", "teacher's hidden states"),
    "engine": ("gradient buckets", "gathered weights", "casts of weights", "weight sync"),
    "activations": (
        "activations kept for backward", "last norm", "activations at work, forward", "activations at work, backward",
        "teacher's activations",
    ),
    "kernel": (
        "kernel: logits of a chunk", "kernel: head's gradient", "kernel: casts of the heads", "kernel: hidden states",
    ),
    "vLLM weights": ("vLLM: weights",),
    "KV cache": ("vLLM: KV cache",),
}  # fmt: skip


def gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def column(setup: Setup, name: str) -> float:
    """Most bytes that the parts of a column take in any phase."""
    parts = [part for part in memory.parts(setup) if part.name in COLUMNS[name]]
    return max(sum(part.bytes for part in parts if phase in part.phases) for phase in memory.PHASES)


def what_trains(setup: Setup) -> str:
    return f"LoRA {setup.lora}" if setup.lora else "all"


def verdict(setup: Setup) -> str:
    if not memory.fits(setup):
        return "**no**"
    return "yes" if memory.peak(setup)[0] <= (1 - plans.ROOM) * setup.gpu_bytes else "barely"


def memory_of_plans(model: str) -> str:
    """One row a run of the page: each part's most, the worst phase, whether it fits."""
    header = ["nodes", "trained", "engine", *COLUMNS, "peak", "in", "fits"]
    rows = []
    for setup in plans.plans(model):
        peak, phase = memory.peak(setup)
        parts = [gb(column(setup, name)) for name in COLUMNS]
        rows.append([str(setup.nodes), what_trains(setup), setup.engine, *parts, gb(peak), phase, verdict(setup)])
    return f"{LABEL} GB on each GPU.\n\n{table(header, rows)}"


def utilization(setup: Setup) -> float:
    """`vllm_gpu_memory_utilization` that gives vLLM what the formulas say it needs."""
    return math.ceil(100 * memory.vllm_bytes(setup) / setup.gpu_bytes) / 100


def recommendations(hardware: Hardware) -> str:
    """What the page recommends, its time by part and what bounds it."""
    names = ["generation", "weight sync", "teacher", "student", "head", "update"]
    header = ["model", "nodes", "trained", "engine", "utilization", "peak GB", *(f"{n} s" for n in names), "tokens/s"]
    rows = []
    for model, nodes, lora, setup in plans.choices():
        shape = SHAPES[model]
        start = [shape.name, str(nodes), f"LoRA {lora}" if lora else "all"]
        if setup is None:
            rows.append([*start, "none fits", *["-"] * (len(header) - len(start) - 1)])
            continue
        spans = {span.name: span for span in speed.spans(setup, hardware)}
        slowest = speed.slowest(setup, hardware).name
        times = [
            f"**{s.seconds:.2f}** ({s.bound})" if s.name == slowest else f"{s.seconds:.2f}" for s in spans.values()
        ]
        peak = gb(memory.peak(setup)[0])
        tokens = f"{speed.tokens_per_second(setup, hardware):,.0f}"
        rows.append([*start, setup.engine, f"{utilization(setup):.2f}", peak, *times, tokens])
    return (
        f"{LABEL} Seconds of an optimizer step; the longest part is bold, with what bounds it.\n\n{table(header, rows)}"
    )


def teachers() -> str:
    """What each kind of teacher costs where all weights are trained and sharded."""
    header = ["model", "nodes", "engine", "teacher", "copy", "lending", "head", "peak", "in", "fits"]
    rows = []
    for model, nodes in (("qwen3-8b", 1), ("qwen3-32b", 1), ("qwen3-32b", 4)):
        for engine in ("zero3", "fsdp2"):
            for kind in TEACHERS:
                setup = plans.plan(model, engine, nodes, 0, kind)
                parts = {part.name: part.bytes for part in memory.teacher(setup)}
                shown = [gb(parts[n]) for n in ("teacher", "lending the teacher's weights", "teacher's head")]
                peak, phase = memory.peak(setup)
                rows.append(
                    [setup.shape.name, str(nodes), engine, f"`{kind}`", *shown, gb(peak), phase, verdict(setup)]
                )
    return f"{LABEL} GB on each GPU, all weights trained.\n\n{table(header, rows)}"


def savings(model: str = "qwen3-32b", engine: str = "zero3") -> str:
    """What each turn frees of a run that does not fit, one after another."""
    setup = replace(plans.plan(model, engine, 1, 0), sleep=False)
    turns = [
        ("as in the tables, but `vllm_enable_sleep_mode=False`", {}),
        ("`vllm_enable_sleep_mode=True`", {"sleep": True}),
        ("`per_device_train_batch_size=1`, `gradient_accumulation_steps=32`", {"rows": 1, "accumulation": 32}),
        ("`vllm_tensor_parallel_size=8`", {"tensor_parallel": 8}),
        ("`teacher_model_kind=\"live\"`", {"teacher": "live"}),
        (f"LoRA of rank {plans.RANK} under `fsdp2`, `base` teacher",
         {"lora": plans.RANK, "engine": "fsdp2", "dtype": "bfloat16", "teacher": "base"}),
    ]  # fmt: skip
    rows = []
    for what, changes in turns:
        setup = replace(setup, **changes)
        peak, phase = memory.peak(setup)
        rows.append([what, gb(peak), phase, str(memory.concurrency(setup)), verdict(setup)])
    header = ["turn", "peak", "in", "rollouts at a time", "fits"]
    return f"{LABEL} GB on each GPU; each row keeps the turns above it.\n\n{table(header, rows)}"


def checks(found: "list[Check]") -> str:
    """Formulas beside measurements, alike ones in one row with the greatest deviation."""
    kinds: dict[str, list[Check]] = {}
    for one in found:
        kinds.setdefault(one.what.split(": ")[-1], []).append(one)
    rows = []
    for kind, alike in kinds.items():
        worst = max(alike, key=lambda one: abs(one.deviation))
        rows.append(
            [
                kind,
                str(len(alike)),
                f"{worst.computed:,.0f}",
                f"{worst.measured:,.0f}",
                f"{100 * worst.deviation:+.1f} %",
                f"{100 * worst.tolerance:g} %",
            ]
        )
    return table(["what", "comparisons", "computed, of the worst", "measured", "deviation", "allowed"], rows)


def one_run(setup: Setup, hardware: Hardware) -> str:
    """Everything about one run."""
    parts = [part for part in memory.parts(setup) if part.bytes]
    rows = [[part.name, gb(part.bytes), *("x" if p in part.phases else "" for p in memory.PHASES)] for part in parts]
    rows.append(["**sum in the phase**", "", *(gb(memory.at(setup, phase)) for phase in memory.PHASES)])
    text = [f"{LABEL} GB on each of {setup.ranks} training GPUs.", table(["part", "GB", *memory.PHASES], rows)]
    peak, phase = memory.peak(setup)
    fits = "It fits" if memory.fits(setup) else "It does **not** fit"
    text.append(f"Peak {gb(peak)} GB of {gb(setup.gpu_bytes)}, in the phase `{phase}`. {fits}.")
    if setup.vllm != "none":
        at_once, share = memory.concurrency(setup), utilization(setup)
        engines = f"{at_once} of {memory.engine_rollouts(setup):.0f} rollouts of an engine at a time"
        text.append(f"vLLM: vllm_gpu_memory_utilization {share:.2f} holds {engines}.")
    if memory.fits(setup):
        spans = [[span.name, f"{span.seconds:.2f}", span.bound] for span in speed.spans(setup, hardware)]
        text.append(table(["part of a step", "seconds", "bound by"], spans))
        slowest = speed.slowest(setup, hardware)
        text.append(
            f"{setup.rollouts} rollouts a step, {speed.tokens_per_second(setup, hardware):,.0f} completion tokens a "
            f"second, bounded by {slowest.name} ({slowest.bound})."
        )
    return "\n\n".join(text)


def blocks(hardware: Hardware) -> dict[str, str]:
    """Blocks of docs/scaling.md that are computed, by the name of their markers."""
    made = {f"memory {model}": memory_of_plans(model) for model in SHAPES}
    return made | {"recommended": recommendations(hardware), "teachers": teachers(), "savings": savings()}
