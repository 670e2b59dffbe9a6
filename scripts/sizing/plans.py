# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The runs that docs/scaling.md shows, and which of them it recommends."""

from sizing.memory import fits, peak
from sizing.setup import Setup
from sizing.shapes import SHAPES


NODES = (1, 4)
RANK = 64
ENGINES = ("ddp", "zero2", "zero3", "fsdp2")
# With the fewest collectives first, as latency is in no formula; of the last two, whichever takes less
_SIMPLEST = ({"ddp"}, {"zero2"}, {"zero3", "fsdp2"})
# What stays free: fragments, CUDA's context, NCCL's buffers, and what the formulas miss
ROOM = 0.2
_TENSOR_PARALLEL = {"qwen3-32b": 4}  # vLLM's weights alone would fill a GPU
# Loaded in float32, TRL's default, where all weights are trained, and in bfloat16 under an adapter
_DTYPE = {0: "float32", RANK: "bfloat16"}


def plan(model: str, engine: str, nodes: int, lora: int, teacher: str = "base") -> Setup:
    """A run of the page."""
    return Setup(
        SHAPES[model],
        engine,
        nodes=nodes,
        lora=lora,
        teacher=teacher,
        dtype=_DTYPE[lora],
        tensor_parallel=_TENSOR_PARALLEL.get(model, 1),
        sleep=True,
    )


def plans(model: str) -> list[Setup]:
    """All runs of a model, those that do not fit too."""
    return [plan(model, engine, nodes, lora) for nodes in NODES for lora in (0, RANK) for engine in ENGINES]


def recommended(candidates: list[Setup]) -> Setup | None:
    """The simplest engine that fits with room to spare, or `None`."""
    for engines in _SIMPLEST:
        roomy = [
            one
            for one in candidates
            if one.engine in engines and fits(one) and peak(one)[0] <= (1 - ROOM) * one.gpu_bytes
        ]
        if roomy:
            return min(roomy, key=lambda one: peak(one)[0])
    return None


def choices() -> list[tuple[str, int, int, Setup | None]]:
    """Model, nodes and rank, and what is recommended for them."""
    made = []
    for model in SHAPES:
        for nodes in NODES:
            for lora in (0, RANK):
                made.append((model, nodes, lora, recommended([plan(model, e, nodes, lora) for e in ENGINES])))
    return made
