# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Memory calculator: does a training run fit, and on which GPUs and engine? Bytes on each GPU by formulas, part by part.

`--write-docs` puts the tables into docs/scaling.md. It needs neither a GPU nor torch. 1 GB is 1e9 bytes.
"""

import argparse
import json
from dataclasses import fields
from itertools import product
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.report import put, table
from benchmarks.sizes import CHOICES, ENGINES, PHASES, TEACHERS, Part, Run, Shape, at, concurrency, parts, peak


# From the models' public configs
SHAPES = {
    "qwen3-1.7b": Shape("Qwen3-1.7B", 28, 2048, 6144, 16, 8, 128, 151_936, tied=True, qk_norm=True),
    "qwen3-8b": Shape("Qwen3-8B", 36, 4096, 12_288, 32, 8, 128, 151_936, qk_norm=True),
    "qwen3-32b": Shape("Qwen3-32B", 64, 5120, 25_600, 64, 8, 128, 151_936, qk_norm=True),
}
FAMILIES = ("qwen3", "qwen2", "llama")  # those that the formulas are checked with
ROOM = 0.2  # share that stays free: fragments, CUDA's context, NCCL's buffers, and what the formulas miss
HELP = {
    "engine": "`none` is one process", "gpus": "GPUs that train", "gpu_gb": "memory of a GPU, GB",
    "dtype": "type of the loaded model", "bf16": "`bf16`", "lora": "rank of an adapter on all matrices, 0 for none",
    "teacher": "`teacher_model_kind`", "views": "views of a rollout", "rows": "`per_device_train_batch_size`",
    "accumulation": "`gradient_accumulation_steps`", "prompt": "tokens", "completion": "tokens",
    "teacher_prompt": "tokens, with the context", "checkpointing": "`gradient_checkpointing`",
    "vllm": "vLLM on the same GPUs", "tensor_parallel": "`vllm_tensor_parallel_size`",
    "sleep": "`vllm_enable_sleep_mode`",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="qwen3-8b", help=f"{', '.join(SHAPES)}, or a folder with a config.json")
    for field in fields(Run):
        if field.name in HELP:
            option, text = "--" + field.name.replace("_", "-"), f"{HELP[field.name]} (default {field.default})"
            kind = {"type": type(field.default), "choices": CHOICES.get(field.name)}
            kind = {"action": argparse.BooleanOptionalAction} if isinstance(field.default, bool) else kind
            parser.add_argument(option, default=field.default, help=text, **kind)


def main(args: argparse.Namespace) -> None:
    if args.write_docs:
        return put(ROOT / "docs" / "benchmarks", blocks(), "scaling.md")
    try:
        print(one_run(Run(find(args.model), **{name: getattr(args, name) for name in HELP})))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def find(model: str) -> Shape:
    """A built-in shape, or that of a folder with a `config.json` of a family that the formulas cover."""
    if model.lower() in SHAPES:
        return SHAPES[model.lower()]
    file = Path(model) / "config.json"
    if not file.is_file():
        raise ValueError(f"`--model`: {model} is neither one of {', '.join(SHAPES)} nor a folder with a config.json.")
    config = json.loads(file.read_text())
    family = config.get("model_type")
    if family not in FAMILIES or config.get("mlp_bias") or (family == "llama" and config.get("attention_bias")):
        known = f"{', '.join(FAMILIES)} (without biases in Llama)"
        raise ValueError(f"`--model`: the formulas cover {known}, and {model} is a {family!r}: name one of like size.")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return Shape(
        Path(model).resolve().name, config["num_hidden_layers"], hidden, config["intermediate_size"], heads,
        config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads, config["vocab_size"],
        config.get("tie_word_embeddings", False), family == "qwen3", family == "qwen2",
    )  # fmt: skip


def gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def verdict(run: Run) -> list[str]:
    """Peak, its phase, and whether it fits, with room to spare or barely; vLLM must hold one rollout at least."""
    found = parts(run)
    most, phase = peak(found)
    share = most / (run.gpu_gb * 1e9)
    fits = share <= 1 and (not run.vllm or concurrency(run, found) >= 1)
    return [gb(most), phase, "**no**" if not fits else "yes" if share <= 1 - ROOM else "barely"]


def one_run(run: Run) -> str:
    found = [part for part in parts(run) if part.bytes]
    rows = [[part.name, gb(part.bytes), *("x" if p in part.phases else "" for p in PHASES)] for part in found]
    rows.append(["**sum in the phase**", "", *(gb(at(found, phase)) for phase in PHASES)])
    most, phase, fits = verdict(run)
    text = f"Peak {most} GB of {run.gpu_gb:g} on each of {run.gpus} GPUs, in the phase `{phase}`. It fits: {fits}."
    if run.vllm:
        text += f" An engine of vLLM generates {concurrency(run, found)} rollouts at a time."
    return f"Computed, not measured.\n\n{table(['part', 'GB', *PHASES], rows)}\n\n{text}"


def page_run(model: str, engine: str, gpus: int, lora: int = 0, teacher: str = "base") -> Run:
    """A run of docs/scaling.md: float32, TRL's default, where all weights are trained; bfloat16 under an adapter."""
    shared = 4 if model == "qwen3-32b" else 1  # vLLM's weights alone would fill a GPU
    dtype = "bfloat16" if lora else "float32"
    return Run(SHAPES[model], engine, gpus, dtype=dtype, lora=lora, teacher=teacher, tensor_parallel=shared)


def columns_of(run: Run) -> dict[str, str]:
    """Most bytes of each column's parts in any phase."""
    columns: dict[str, list[Part]] = {}
    for part in parts(run):
        columns.setdefault(part.name.split(":")[0], []).append(part)
    return {name: gb(peak(own)[0]) for name, own in columns.items()}


def blocks() -> dict[str, str]:
    """Tables of docs/scaling.md, by the name of their markers."""
    made = {}
    for model in SHAPES:
        rows = []
        for gpus, lora, engine in product((8, 32), (0, 64), ENGINES[1:]):
            run = page_run(model, engine, gpus, lora)
            columns = columns_of(run)
            rows.append([gpus, f"LoRA {lora}" if lora else "all", engine, *columns.values(), *verdict(run)])
        made[f"memory {model}"] = table(["GPUs", "trained", "engine", *columns, "peak", "in", "fits"], rows)
    rows = []
    for (model, gpus), engine, kind in product((("qwen3-8b", 8), ("qwen3-32b", 32)), ("zero3", "fsdp2"), TEACHERS):
        run = page_run(model, engine, gpus, teacher=kind)
        rows.append([run.shape.name, gpus, engine, f"`{kind}`", columns_of(run)["teacher"], *verdict(run)])
    return {**made, "teachers": table(["model", "GPUs", "engine", "teacher", "its GB", "peak", "in", "fits"], rows)}
