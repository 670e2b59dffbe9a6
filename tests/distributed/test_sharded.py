# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Under every engine, two processes compute what one process computes: gradients, metrics and the teacher.

Weights after a step prove less than gradients: an adaptive optimizer hides a gradient that is wrong by a factor, and a
small learning rate hides any. The reference is the same trainer in one process, whose loss test_trainer_loss.py
derives afresh.
"""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from engine_cases import BFLOAT16, CASES, COMPARED_WITH_DDP, EMA, MATRIX, PROCESSES, SKILLS, options
from launch import launch


WORKER = Path(__file__).parent / "sharded_worker.py"
LIMIT_SECONDS = 500
# What is compared of the log, beside all of self-distillation
LOGGED = ("loss", "eval_loss", "reward", "num_tokens")
Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> Callable[[str], dict[tuple[str, str, str], list[Outcome]]]:
    """By name of a launch: each rank's outcome of each case. They share the processes, which take long to start."""
    saved = tmp_path_factory.mktemp("model")
    tiny.tokenizer().save_pretrained(saved)
    tiny.model(tiny.tokenizer(), seed=3, tie_word_embeddings=False).save_pretrained(saved)
    for seed, name in enumerate(SKILLS):
        tiny.save_adapter(saved / name, seed, 0.3)

    @cache
    def run(name: str) -> dict[tuple[str, str, str], Any]:
        folder, processes = tmp_path_factory.mktemp("run"), PROCESSES[name]
        keys = [(*engine, case) for engine, cases in MATRIX[name].items() for case in cases]
        runs = [{"engine": e, "variant": v, "options": options(case, processes, saved)} for e, v, case in keys]
        (folder / "runs.json").write_text(json.dumps(runs))
        launch(WORKER, str(folder), str(folder / "runs.json"), processes=processes, seconds=LIMIT_SECONDS)
        ranks = [[torch.load(folder / f"{n}-{rank}.pt") for n in range(len(keys))] for rank in range(processes)]
        return dict(zip(keys, zip(*ranks, strict=True), strict=True))

    return run


def whole(results: list[Outcome]) -> list[Outcome]:
    for result in results:
        if isinstance(result, str):
            pytest.fail(result, pytrace=False)
    return results


def same_gradients(got: list[dict], expected: list[dict]) -> None:
    """Each parameter's gradient, at the scale of its own norm, at each step."""
    assert len(got) == len(expected) >= 2
    for step, (values, references) in enumerate(zip(got, expected, strict=True)):
        assert values.keys() == references.keys()
        total = torch.stack([value.norm() for value in references.values()]).norm()
        assert total > 0.01
        for name, reference in references.items():
            # A new adapter's A has no gradient at first, as its B is zero; nothing else may be as good as zero
            assert reference.norm() > 1e-3 * total or (step == 0 and "lora_A" in name), f"{name}: says nothing"
            error = (values[name] - reference).norm() / reference.norm().clamp(min=1e-3 * total)
            # Rounding grows as it goes through the weights of twenty steps
            assert error < 1e-4 * 2 ** (step / 2), f"step {step}, {name}: off by {error:.1e} of its norm"


def same_history(got: list[dict], expected: list[dict], accumulates: bool) -> None:
    """What is logged. With accumulation, all but the loss is, as in TRL, a mean of the micro-batches' means, and which
    rows share a micro-batch depends on the number of ranks."""
    assert len(got) == len(expected)
    for mine, reference in zip(got, expected, strict=True):
        names = [name for name in reference if "self_distillation/" in name or "@" in name or name in LOGGED]
        assert names or "train_runtime" in reference
        for name in names:
            value = reference[name]
            if accumulates and not name.startswith("eval_") and name not in LOGGED:
                continue
            if isinstance(value, float) and math.isnan(value):
                assert math.isnan(mine[name]), name
            else:
                assert mine[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name


def same_tensors(got: dict, expected: dict, tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, reference in expected.items():
        assert got[name].dtype == reference.dtype
        torch.testing.assert_close(
            got[name], reference, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n} {m}"
        )


EVERY = [
    pytest.param(name, *engine, case, id=" ".join(filter(None, (*engine, "-", case))))
    for name, engines in MATRIX.items()
    if name != "one process"
    for engine, cases in engines.items()
    for case in cases
    if case != BFLOAT16 and not (name == "ddp" and case in COMPARED_WITH_DDP)
]


@pytest.mark.parametrize("launched, engine, variant, case", EVERY)
def test_two_processes_equal_one(outcomes, launched, engine, variant, case):
    if launched == "zero":
        pytest.importorskip("deepspeed")
    compared = ("ddp", ("ddp", "", case)) if case in COMPARED_WITH_DDP else ("one process", ("none", "", case))
    expected = whole(outcomes(compared[0])[compared[1]])[0]
    ranks = whole(outcomes(launched)[engine, variant, case])
    if "resume" in CASES[case]:  # these ranks have not seen the first steps
        assert len(ranks[0]["gradients"]) == 2
        expected = expected | {"gradients": expected["gradients"][-2:]}
    same_gradients(ranks[0]["gradients"], expected["gradients"])
    same_history(ranks[0]["history"], expected["history"], "gradient_accumulation_steps" in CASES[case])
    same_tensors(ranks[0]["teacher"], expected["teacher"], 1e-3)
    for mine, other in zip(*(rank["gradients"] for rank in ranks), strict=True):
        assert all(torch.equal(mine[name], other[name]) for name in mine), "the ranks differ"


AVERAGED = [
    pytest.param(name, *engine, case, id=" ".join(filter(None, (*engine, "-", case))))
    for name, engines in MATRIX.items()
    for engine, cases in engines.items()
    for case in cases
    if CASES[case].get("weights")
]


@pytest.mark.parametrize("launched, engine, variant, case", AVERAGED)
def test_the_sharded_average_is_the_average(outcomes, launched, engine, variant, case):
    """Against the float64 average of the student's whole weights, as gathered after every step."""
    if launched == "zero":
        pytest.importorskip("deepspeed")
    result = whole(outcomes(launched)[engine, variant, case])[0]
    teacher, (start, *weights) = result["teacher"], result["weights"]
    rate = CASES[case].get("teacher_update_rate", EMA["teacher_update_rate"])
    assert len(weights) == CASES[case]["max_steps"] and teacher
    for name, tensor in teacher.items():
        expected = start[name].double()
        for step in weights:
            expected.lerp_(step[name].double(), rate)
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(tensor.double(), start[name].double()), f"{name} has not moved"
    if case == BFLOAT16:
        assert all(step[name].dtype == torch.bfloat16 for step in weights for name in teacher)
        rounded = [torch.equal(tensor.to(torch.bfloat16).float(), tensor) for tensor in teacher.values()]
        assert not any(rounded), "a bfloat16 teacher could hold it"
