# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Under every engine, two processes compute the gradients that one process computes.

Weights after a step prove less: an adaptive optimizer hides a gradient that is wrong by a factor, and a small learning
rate hides any. The reference is the same trainer in one process, whose loss tests/test_trainer_loss.py derives afresh.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from launch import launch


WORKER = Path(__file__).parent / "sharded_worker.py"
LIMIT_SECONDS = 240
Steps = list[dict[str, torch.Tensor]]

# The second step shows what the first one, and an evaluation after it, leave behind in an engine
COMMON = {"max_steps": 2, "max_grad_norm": 0.0, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.1}
UNTIED = {"model_options": {"tie_word_embeddings": False}}
LORA = {"lora": {}, "learning_rate": 1.0, "teacher_model_kind": "base"}

# Eight rollouts a step, of which the first of two ranks has the first four: of the data's rows 0 to 7 in both steps
# without groups, of 0 to 3 and then 4 to 7 in groups of two, of 0 and 1 and then 2 and 3 in groups of four
CASES: dict[str, dict[str, Any]] = {
    "pure, tied": {"rows_with_view": [5, 6, 7]},
    "pure, untied": {"rows_with_view": [0, 1, 2], **UNTIED},
    "mixed, tied": {"rows_with_view": [0, 1], "reward": True, "num_generations": 8},
    "mixed, untied": {"rows_with_view": [0, 3], "reward": True, "num_generations": 4, **UNTIED},
    "sampled token": {
        "rows_with_view": [0, 1, 6, 7], "reward": True, "num_generations": 2, "distillation_mode": "sampled_token",
        "distillation_alpha": 1.0, **UNTIED,
    },
    "accumulation and checkpointing": {
        "rows_with_view": [0, 2, 6, 7], "reward": True, "num_generations": 2, "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True, **UNTIED,
    },
    "LoRA, pure, tied": {"rows_with_view": [5, 6, 7], **LORA},
    "LoRA, mixed, untied": {
        "rows_with_view": [0, 1, 6, 7], "reward": True, "num_generations": 2, **LORA, **UNTIED,
    },
    "LoRA, mixed, live": {
        "rows_with_view": [2, 3, 4, 5], "reward": True, "num_generations": 2, **LORA, "teacher_model_kind": "live",
    },
    "LoRA with a head of its own": {
        "rows_with_view": [1, 2, 7], **LORA, "lora": {"modules_to_save": ["lm_head"]}, "learning_rate": 0.1, **UNTIED,
    },
    "teacher from a folder": {"rows_with_view": [1, 2, 7], "teacher_model_kind": "checkpoint", **UNTIED},
    "student from a folder": {"rows_with_view": [1, 2, 7], "model": "folder"},
}  # fmt: skip

# By launch: engine and layout, and the cases that tell something about it
PROCESSES = {"one process": 1, "ddp": 2, "fsdp2": 2, "zero": 2}
MATRIX: dict[str, dict[tuple[str, str], list[str]]] = {
    "one process": {("none", ""): list(CASES)},
    "ddp": {
        ("ddp", ""): [
            "pure, tied", "pure, untied", "mixed, tied", "mixed, untied", "accumulation and checkpointing",
            "LoRA, pure, tied", "LoRA, mixed, untied", "teacher from a folder",
        ],
    },
    "fsdp2": {
        ("fsdp2", "reshard"): list(CASES),
        ("fsdp2", "keep"): ["pure, tied", "mixed, untied", "LoRA, mixed, untied", "student from a folder"],
        ("fsdp2", "root reshards"): ["pure, tied", "mixed, untied", "LoRA, pure, tied"],
        ("fsdp2", "own head"): [
            "pure, untied", "mixed, untied", "sampled token", "accumulation and checkpointing", "LoRA, mixed, untied",
            "LoRA with a head of its own", "teacher from a folder",
        ],
        ("fsdp2", "own head, root reshards"): ["pure, untied", "mixed, untied"],
    },
    "zero": {
        ("zero3", ""): list(CASES),
        ("zero2", ""): ["pure, tied", "mixed, untied", "LoRA, mixed, untied"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def gradients(tmp_path_factory) -> Callable[[str], dict[tuple[str, str, str], Steps]]:
    """By name of a launch: each rank's gradients of each case. They share the processes, which take long to start."""
    saved = tmp_path_factory.mktemp("model")
    tiny.tokenizer().save_pretrained(saved)
    tiny.model(tiny.tokenizer(), seed=3, tie_word_embeddings=False).save_pretrained(saved)

    def options(case: str, processes: int) -> dict[str, Any]:
        merged = {"teacher_model_kind": "live", **COMMON, **CASES[case]}
        if "model" in merged:
            merged["model"] = str(saved)
        if merged["teacher_model_kind"] == "checkpoint":
            merged["teacher_model_name_or_path"] = str(saved)
        rows = 8 // processes
        merged["per_device_train_batch_size"] = rows // merged.get("gradient_accumulation_steps", 1)
        return {**merged, "per_device_eval_batch_size": rows}

    @cache
    def run(name: str) -> dict[tuple[str, str, str], Any]:
        folder, processes = tmp_path_factory.mktemp("run"), PROCESSES[name]
        keys = [(*engine, case) for engine, cases in MATRIX[name].items() for case in cases]
        runs = [{"engine": e, "variant": v, "options": options(case, processes)} for e, v, case in keys]
        (folder / "runs.json").write_text(json.dumps(runs))
        launch(WORKER, str(folder), str(folder / "runs.json"), processes=processes, seconds=LIMIT_SECONDS)
        ranks = [[torch.load(folder / f"{n}-{rank}.pt") for n in range(len(keys))] for rank in range(processes)]
        return dict(zip(keys, zip(*ranks, strict=True), strict=True))

    return run


def assert_same(got: Steps, expected: Steps) -> None:
    """Each parameter's gradient, at the scale of its own norm, at each step."""
    assert len(got) == len(expected) == COMMON["max_steps"]
    for step, (values, references) in enumerate(zip(got, expected, strict=True)):
        assert values.keys() == references.keys()
        total = torch.stack([value.norm() for value in references.values()]).norm()
        assert total > 0.1
        for name, reference in references.items():
            # A new adapter's A has no gradient at first, as its B is zero; nothing else may be as good as zero
            assert reference.norm() > 1e-3 * total or (step == 0 and "lora_A" in name), f"{name}: says nothing"
            error = (values[name] - reference).norm() / reference.norm().clamp(min=1e-3 * total)
            assert error < 1e-4, f"step {step}, {name}: off by {error:.1e} of its norm"


@pytest.mark.parametrize(
    "launched, engine, variant, case",
    [
        pytest.param(name, *engine, case, id=" ".join(filter(None, (*engine, "-", case))))
        for name, engines in MATRIX.items()
        if name != "one process"
        for engine, cases in engines.items()
        for case in cases
    ],
)
def test_gradients_equal_those_of_one_process(gradients, launched, engine, variant, case):
    if launched == "zero":
        pytest.importorskip("deepspeed")
    (expected,) = gradients("one process")["none", "", case]
    ranks = gradients(launched)[engine, variant, case]
    for result in (expected, *ranks):
        if isinstance(result, str):
            pytest.fail(result, pytrace=False)
    assert_same(ranks[0], expected)
    for mine, other in zip(*ranks, strict=True):
        assert all(torch.equal(mine[name], other[name]) for name in mine), "the ranks differ"
