# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Changes that make a run fit: they do, none of them can be left out, and the cheapest comes first."""

from dataclasses import replace

import pytest

from trl_opsd.memory import BARELY, MODELS, NO, YES, Run, Shape, judge, remedies


SMALL, MIDDLE, LARGE = (Shape(MODELS[name]) for name in ("qwen3-1.7b", "qwen3-8b", "qwen3-32b"))
RUNS = {
    "engine": Run(MIDDLE, "ddp"),
    "barely": Run(MIDDLE, "zero2"),
    "awake": Run(MIDDLE, "zero3", utilization=0.5, sleep=False, rows=8),
    "all kept": Run(MIDDLE, "zero3", checkpointing=False, rows=8, sleep=False, utilization=0.3),
    "large": Run(LARGE, "zero3"),
    "gathered": Run(LARGE, "zero3", gpus=32, vllm=False),
    "one GPU": Run(MIDDLE, "none", gpus=1),
    "small GPUs": Run(SMALL, "ddp", gpu_gb=24, rows=8),
    "long rows": Run(SMALL, "zero3", rows=16, completion=32_768, accumulation=1, utilization=0.2),
    "kept answers": Run(SMALL, "zero3", gpu_gb=24, rows=1, completion=8192, accumulation=256, iterations=2),
}


def subjects(run):
    return [{change.subject for change in one.changes} for one in remedies(run)]


@pytest.mark.parametrize("name", RUNS)
def test_a_remedy_makes_a_run_fit_and_each_change_counts(name):
    run = RUNS[name]
    assert judge(run).fits != YES
    found = remedies(run)
    assert 1 <= len(found) <= 3
    costs = [sum(change.cost for change in one.changes) for one in found]
    assert costs == sorted(costs)
    for one in found:
        assert judge(one.run) == one.verdict and one.verdict.fits == YES
        for left in one.changes:
            kept = [change for change in one.changes if change != left]
            without = replace(run, **{key: value for change in kept for key, value in change.fields.items()})
            assert judge(without).fits != YES, f"{left.subject} is not needed"


def test_what_leaves_the_training_alone_comes_first():
    assert subjects(RUNS["engine"])[0] == {"engine"}
    assert [one.changes_training for one in remedies(RUNS["engine"])] == [False, True]
    assert subjects(RUNS["awake"])[0] == {"sleep"}
    assert subjects(RUNS["gathered"])[0] == {"engine"}
    assert subjects(RUNS["one GPU"])[0] == {"lora"}, "one GPU has no other"
    assert "teacher" not in set.union(*subjects(RUNS["large"])), "an adapter's teacher costs nothing"


def test_smaller_micro_batches_are_the_same_step():
    run = RUNS["long rows"]
    for one in remedies(run):
        assert one.run.rows * one.run.accumulation == run.rows * run.accumulation


def test_where_nothing_gives_room_barely_is_told_and_where_nothing_fits_nothing():
    run = Run(MIDDLE, "none", gpus=1, gpu_gb=22, lora=8, dtype="bfloat16", vllm=False, server=True)
    (only,) = remedies(replace(run, rows=8))
    assert only.verdict.fits == BARELY and [change.subject for change in only.changes] == ["rows"]
    assert remedies(only.run) == [], "no change gives room"
    assert judge(replace(run, gpu_gb=8)).fits == NO and remedies(replace(run, gpu_gb=8)) == []
