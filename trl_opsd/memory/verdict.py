# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Verdict on a run: its peak, and whether it fits."""

from typing import NamedTuple

from trl_opsd.memory.formulas import VLLM_OVERHEAD, Run, parts, peak


ROOM = 0.2  # share that stays free: fragments, CUDA's context, NCCL's buffers, and what the formulas miss
YES, BARELY, NO = "yes", "barely", "no"


class Verdict(NamedTuple):
    """
    Verdict on a run.

    Args:
        peak (`float`): Most bytes on a GPU.
        phase (`str`): Phase that has them.
        fits (`str`): `"yes"` with room to spare, `"barely"`, or `"no"`.
        starved (`bool`): Whether vLLM has no room for a single rollout.
    """

    peak: float
    phase: str
    fits: str
    starved: bool


def judge(run: Run) -> Verdict:
    """Verdict on a run; vLLM must hold one rollout at least."""
    found = parts(run)
    most, phase = peak(found)
    share = most / (run.gpu_gb * 1e9)
    cache = sum(part.bytes for part in found if part.name == "KV cache") - VLLM_OVERHEAD
    starved = run.vllm and cache < run.shape.kv_bytes * run.length / run.tensor_parallel
    fits = NO if share > 1 or starved else YES if share <= 1 - ROOM else BARELY
    return Verdict(most, phase, fits, starved)


def gb(size: float) -> str:
    """Bytes as GB with one decimal."""
    return f"{size / 1e9:.1f}"
