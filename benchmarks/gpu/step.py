# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Part `step`: the training part of a step as `benchmarks/step.py` times it, here of a model as large as Qwen3-0.6B with
random weights in bfloat16; the bare teacher forward, waits for the device, and how busy the device is.
"""

import copy

import torch

import tiny
from benchmarks.gpu.part import Part
from benchmarks.gpu.profiling import busy, synchronisations
from benchmarks.measure import Timed
from benchmarks.report import Row
from benchmarks.rollouts import Model, Scenario, qwen3_like
from benchmarks.step import BARE, GRPO, LIVE, LORA, OWN
from benchmarks.trainers import BareTeacher, Window


LAYERS = 28
MIXED, LIVE_OPTIONS = "mixed with reward", OWN[LIVE][1]
CONTENDERS = {
    **{name: OWN[name] for name in (GRPO, LIVE, "pure, base")},
    "pure, ema": ("OPSD", {"teacher_model_kind": "ema"}),
    **{name: OWN[name] for name in ("top-k 100", MIXED)},
    "pure, JSD": ("OPSD", {**LIVE_OPTIONS, "distillation_alpha": 0.5}),
    **{name: OWN[name] for name in (LORA, "pure, LoRA")},
}
SHARED = {name: CONTENDERS[name] for name in (GRPO, LIVE, MIXED)}
PROFILED = (GRPO, LIVE)
LENGTHS = {"completion": (256, 768), "prompt": (20, 40), "context": (60, 120)}
LONG = {"completion": (256, 768), "prompt": (40, 40), "context": (400, 400)}
TINY_LENGTHS = {"completion": (3, 8), "prompt": (2, 3), "context": (2, 4)}


def run(part: Part) -> None:
    rows = 4 if part.tiny else 8
    lengths, long = (TINY_LENGTHS, TINY_LENGTHS) if part.tiny else (LENGTHS, LONG)
    scenarios = {
        "own": (Scenario(rows, rows, **lengths), CONTENDERS),
        "shared": (Scenario(rows, rows, **long, group=rows), SHARED),
    }
    source = model(part)
    for name, (scenario, trainers) in scenarios.items():
        part.attempt(f"{name}: {BARE}", lambda one=name, of=scenario: bare(part, one, of, source), need=6)
        for trainer in trainers:
            case = name, scenario, trainer, source
            part.attempt(f"{name}: {trainer}", lambda case=case: window(part, *case), need=8)


def model(part: Part) -> Model:
    tokenizer = tiny.tokenizer()
    if part.tiny:
        return Model("tiny", tiny.model(tokenizer, max_position_embeddings=2048).bfloat16(), tokenizer)
    with torch.device(part.device):
        return qwen3_like(torch.bfloat16, tokenizer, LAYERS)


def fresh(source: Model) -> Model:
    """Copy of a model: a trainer changes what it is given."""
    return Model(source.name, copy.deepcopy(source.model), source.tokenizer)


def bare(part: Part, name: str, scenario: Scenario, source: Model) -> Row:
    teacher = BareTeacher(fresh(source), scenario, part.device)
    teacher()
    runs: list[Timed] = [teacher() for _ in range(1 if part.tiny else 5)]
    seconds = sorted(one.seconds for one in runs)
    middle = seconds[len(seconds) // 2]
    times = {"seconds": middle, "least": seconds[0], "most": seconds[-1]}
    return {"scenario": name, "name": BARE, **times, "teacher_tokens": teacher.real}


def window(part: Part, name: str, scenario: Scenario, trainer: str, source: Model) -> Row:
    kind, options = CONTENDERS[trainer]
    made = Window(kind, fresh(source), scenario, part.device, **dict(options))
    row = {"scenario": name, "name": trainer, **part.timed(made, repeats=1 if part.tiny else 5)}
    row |= {f"{of}_tokens": count for of, count in made.tokens().items()}
    if part.device == "cuda":
        row |= synchronisations(made)
        row |= busy(made, part.device) if trainer in PROFILED else {}
    return row
