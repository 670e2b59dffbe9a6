# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Memory calculator: bytes on each GPU of a training run by formulas, and whether they fit. It needs no torch."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT
from benchmarks.report import put, table
from benchmarks.sizes import PHASES, VLLM_OVERHEAD, Part, Run, Shape, at, parts, peak


ROOM = 0.2  # share that stays free: fragments, CUDA's context, NCCL's buffers, and what the formulas miss


KEYS = (  # of a transformers config
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings",
)  # fmt: skip
MODELS = {
    "qwen3-1.7b": dict(zip(KEYS, ("qwen3", 28, 2048, 6144, 16, 8, 128, 151_936, True), strict=True)),
    "qwen3-8b": dict(zip(KEYS, ("qwen3", 36, 4096, 12_288, 32, 8, 128, 151_936, False), strict=True)),
    "qwen3-32b": dict(zip(KEYS, ("qwen3", 64, 5120, 25_600, 64, 8, 128, 151_936, False), strict=True)),
}
OPTIONS = [one for one in fields(Run) if one.name != "shape"]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="qwen3-8b", help=f"{', '.join(MODELS)}, or a folder with a config.json")
    for one in OPTIONS:
        kind = {"type": type(one.default), "choices": one.metadata["choices"]}
        kind = {"action": argparse.BooleanOptionalAction} if isinstance(one.default, bool) else kind
        text = f"{one.metadata['help']} (default {one.default})"
        parser.add_argument("--" + one.name.replace("_", "-"), default=one.default, help=text, **kind)


def main(args: argparse.Namespace) -> None:
    if args.write_docs:
        return put(ROOT / "docs" / "benchmarks", blocks(), "scaling.md")
    try:
        print(one_run(Run(find(args.model), **{one.name: getattr(args, one.name) for one in OPTIONS})))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def find(model: str) -> Shape:
    """Shape of a model of the list, or of a folder with a `config.json`."""
    file = Path(model) / "config.json"
    if model.lower() not in MODELS and not file.is_file():
        raise ValueError(f"`--model`: {model} is neither one of {', '.join(MODELS)} nor a folder with a config.json.")
    return Shape(MODELS.get(model.lower()) or json.loads(file.read_text()))


def gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def verdict(run: Run) -> list[str]:
    """Peak, its phase, and whether it fits, with room to spare or barely; vLLM must hold one rollout at least."""
    found = parts(run)
    most, phase = peak(found)
    share = most / (run.gpu_gb * 1e9)
    cache = sum(part.bytes for part in found if part.name == "KV cache") - VLLM_OVERHEAD
    fits = share <= 1 and (not run.vllm or cache >= run.shape.kv_bytes * run.length / run.tensor_parallel)
    return [gb(most), phase, "**no**" if not fits else "yes" if share <= 1 - ROOM else "barely"]


def one_run(run: Run) -> str:
    found = [part for part in parts(run) if part.bytes]
    rows = [[part.name, gb(part.bytes), *("x" if p in part.phases else "" for p in PHASES)] for part in found]
    rows.append(["**sum in the phase**", "", *(gb(at(found, phase)) for phase in PHASES)])
    most, phase, fits = verdict(run)
    text = f"Peak {most} GB of {run.gpu_gb:g} on each of {run.gpus} GPUs, in the phase `{phase}`. It fits: {fits}."
    return f"Computed, not measured.\n\n{table(['part', 'GB', *PHASES], rows)}\n\n{text}"


def runs_table(model: str, *grid: Sequence[Any]) -> str:
    """A row for each run of a grid of GPUs, LoRA ranks, engines and teachers: the most of each column in any phase."""
    shape, shared = Shape(MODELS[model]), 4 if model == "qwen3-32b" else 1  # vLLM's weights alone would fill a GPU
    rows = []
    for gpus, lora, engine, teacher in product(*grid):
        run = Run(shape, engine, gpus, 80.0, "bfloat16" if lora else "float32", True, lora, teacher,
                  tensor_parallel=shared)  # fmt: skip
        columns: dict[str, list[Part]] = {}
        for part in parts(run):
            columns.setdefault(part.name.split(":")[0], []).append(part)
        sizes = [gb(peak(own)[0]) for own in columns.values()]
        rows.append([gpus, f"LoRA {lora}" if lora else "all", engine, f"`{teacher}`", *sizes, *verdict(run)])
    return table(["GPUs", "trained", "engine", "teacher", *columns, "peak", "in", "fits"], rows)


def blocks() -> dict[str, str]:
    """Tables of docs/scaling.md, by the name of their markers."""
    engines, kinds = ("ddp", "zero2", "zero3", "fsdp2"), ("live", "base", "ema", "snapshot")
    made = {f"memory {model}": runs_table(model, (8, 32), (0, 64), engines, ("base",)) for model in MODELS}
    return {
        **made,
        "teachers": runs_table("qwen3-8b", (8,), (0,), ("ddp", "zero3", "fsdp2"), kinds),
        "passes": passes(),
    }


def passes() -> str:
    """Hidden states of the teacher that are kept between the passes over a generation batch, and the peaks."""
    rows = []
    for model, accumulation in product(MODELS, (8, 32)):
        once, twice = (
            Run(Shape(MODELS[model]), accumulation=accumulation, iterations=iterations, tensor_parallel=4)
            for iterations in (1, 2)
        )
        kept = sum(part.bytes for part in parts(twice) if part.name == "teacher: kept hidden states")
        rows.append([model, accumulation, gb(kept), *verdict(once), *verdict(twice)])
    ends = ["peak", "in", "fits"]
    columns = [f"{name}, {number}" for number in ("one pass", "two") for name in ends]
    return table(["model", "micro-batches", "kept", *columns], rows)
