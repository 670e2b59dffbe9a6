# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Writes the tables of docs/scaling.md, which the memory calculator computes:

python scripts/scaling_docs.py
"""

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from trl_opsd.memory import MODELS, NO, Part, Run, Shape, gb, judge, parts, peak


PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
SIZES = ("qwen3-1.7b", "qwen3-8b", "qwen3-32b")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def verdict(run: Run) -> list[str]:
    """Cells of peak, phase and whether it fits."""
    found = judge(run)
    return [gb(found.peak), found.phase, f"**{NO}**" if found.fits == NO else found.fits]


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
    made = {f"memory {model}": runs_table(model, (8, 32), (0, 64), engines, ("base",)) for model in SIZES}
    return {
        **made,
        "teachers": runs_table("qwen3-8b", (8,), (0,), ("ddp", "zero3", "fsdp2"), kinds),
        "passes": passes(),
    }


def passes() -> str:
    """Hidden states of the teacher that are kept between the passes over a generation batch, and the peaks."""
    rows = []
    for model, accumulation in product(SIZES, (8, 32)):
        once, twice = (
            Run(Shape(MODELS[model]), accumulation=accumulation, iterations=iterations, tensor_parallel=4)
            for iterations in (1, 2)
        )
        kept = sum(part.bytes for part in parts(twice) if part.name == "teacher: kept hidden states")
        rows.append([model, accumulation, gb(kept), *verdict(once), *verdict(twice)])
    ends = ["peak", "in", "fits"]
    columns = [f"{name}, {number}" for number in ("one pass", "two") for name in ends]
    return table(["model", "micro-batches", "kept", *columns], rows)


def written(text: str) -> str:
    """Page with the tables between their markers."""
    for marker, block in blocks().items():
        pattern = re.compile(rf"<!-- {marker} -->.*?<!-- /{marker} -->", re.S)
        marked = f"<!-- {marker} -->\n{block}\n<!-- /{marker} -->"
        text, count = pattern.subn(lambda _, new=marked: new, text)
        if count != 1:
            raise ValueError(f"{PAGE} has the markers of {marker!r} {count} times.")
    return text


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE} holds {len(blocks())} tables.")
