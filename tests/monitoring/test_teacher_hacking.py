# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Teacher hacking is told where the score falls and the divergence too, once, at the right evaluation; else nothing."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState
from datasets import Dataset

from trl_opsd.monitoring.teacher_hacking import Evaluated, HackingMonitor, hacking, log_log_residual


COUNT = 20
FALLING = [2.0 * 0.9**i for i in range(COUNT)]
SEEDS = 100


def told(scores, divergences, prefix="eval", monitor=None):
    """Evaluations at steps 10, 20 and so on: number of the evaluation and text of each warning."""
    PartialState()
    monitor, given = monitor or HackingMonitor(), []
    for i, pair in enumerate(zip(scores, divergences, strict=True), 1):
        log = dict(zip((f"{prefix}_avg@4", f"{prefix}_self_distillation/divergence"), pair, strict=True))
        given += [(i, text) for text in monitor.observe(log, 10 * i).values()]
    return given


def up_then_down(turn):
    return [i if i < turn else 2 * turn - i for i in range(COUNT)]


def test_both_better_is_silent():
    assert told([i / COUNT for i in range(COUNT)], FALLING) == []


def test_a_lasting_fall_is_told_once_at_the_right_evaluation():
    """By hand: scores 0 1 2 3 4 5 4 3 2 1 0. The best window is 4 5 4 with mean 13/3. After 2 1 0, mean 1, neighbours
    from that window on differ by 1, so a standard deviation is sqrt(1/2) and an error sqrt(1/2 * 2/3) = 0.577: the fall
    of 3.33 is 5.8 errors. One evaluation before, after 3 2 1, it was 2.33 and 4.04 errors."""
    ((number, text),) = told(up_then_down(5), FALLING)
    assert number == 11 and text.startswith("Step 110: `eval_avg@4` fell from 4.33 (steps 50 to 70) to 1 (steps 90 to ")
    assert "3.33 where chance explains about 0.58" in text
    assert f"divergence from the teacher fell from {np.mean(FALLING[4:7]):.3g} to {np.mean(FALLING[8:11]):.3g}" in text
    assert "`metric_for_best_model`" in text


@pytest.mark.parametrize(
    ("scores", "divergences"),
    [
        (up_then_down(5), FALLING[::-1]),  # worse, but not by coming closer to the teacher
        (up_then_down(5), [1.0] * COUNT),
        ([0.5] * COUNT, FALLING),
        (up_then_down(COUNT), FALLING),
        ([math.nan] * COUNT, FALLING),
        (up_then_down(5), [math.nan] * COUNT),
        (up_then_down(5), [None] * COUNT),
    ],
)
def test_silent(scores, divergences):
    assert told(scores, divergences) == []


def test_five_evaluations_are_too_few():
    scores = [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    assert told(scores[:5], FALLING[:5]) == [] and [number for number, _ in told(scores, FALLING[:6])] == [6]


@pytest.mark.parametrize("count", [6, 12, 25, 50])
@pytest.mark.parametrize("kind", ["normal", "share of 32 prompts"])
def test_noise_is_silent_while_the_divergence_falls(count, kind):
    """The student has stopped learning the task, and comes closer to the teacher all the same."""
    loud = 0
    for seed in range(SEEDS):
        rng = np.random.default_rng([seed, count])
        scores = rng.normal(size=count) if kind == "normal" else rng.binomial(32, 0.5, size=count) / 32
        loud += bool(told(scores, [2.0 * 0.9**i for i in range(count)]))
    assert loud <= SEEDS // 20


def test_a_fall_is_told_under_noise():
    found = 0
    for seed in range(SEEDS):
        noise = np.random.default_rng(seed).normal(size=COUNT)
        found += bool(told(np.array(up_then_down(8)) + noise, FALLING))
    assert found >= 0.9 * SEEDS


def test_each_eval_set_is_told_of_by_itself():
    monitor = HackingMonitor()
    assert len(told(up_then_down(5), FALLING, monitor=monitor)) == 1
    ((_, text),) = told(up_then_down(5), FALLING, "eval_hard", monitor)
    assert "`eval_hard_avg@4`" in text
    assert told(up_then_down(5), FALLING, "eval_teacher/privileged", HackingMonitor())
    log = {"eval_teacher/privileged/avg@4": 1.0, "eval_self_distillation/divergence": 1.0}  # the teacher's own score
    HackingMonitor().observe(log, 1)
    assert not HackingMonitor().series


@pytest.mark.parametrize("stopped", [4, 8, 10, 11, 15])
def test_a_resumed_run_goes_on(stopped):
    """What was told before the checkpoint is not told again, and what was not comes when it would have come."""
    whole = told(up_then_down(5), FALLING)
    history = [
        {"eval_avg@4": score, "eval_self_distillation/divergence": value, "step": 10 * i}
        for i, (score, value) in enumerate(zip(up_then_down(5), FALLING, strict=True), 1)
    ]
    resumed = HackingMonitor()
    resumed.observe(history[-1], 990)  # of another run: forgotten
    resumed.recall(history[:stopped])
    after = [(i, text) for i in range(stopped, COUNT) for text in resumed.observe(history[i], 10 * (i + 1)).values()]
    assert [(i + 1, text) for i, text in after] == [pair for pair in whole if pair[0] > stopped]


def test_the_residual_is_that_of_a_least_squares_line():
    rng = np.random.default_rng(0)
    steps, values = np.arange(0, 120, 10), np.exp(rng.normal(size=12))
    series = {int(step): Evaluated(0.0, float(value)) for step, value in zip(steps, values, strict=True)}
    x, y = np.log(steps[1:]), np.log(values[1:])  # step 0 has no logarithm
    expected = np.sqrt(np.mean((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2))
    assert log_log_residual(series) == pytest.approx(expected, rel=1e-9)
    power = {step: Evaluated(0.0, 3.0 * step**-0.7) for step in range(1, 9)}
    assert log_log_residual(power) == pytest.approx(0.0, abs=1e-12)
    assert log_log_residual({1: Evaluated(0.0, 1.0), 2: Evaluated(0.0, -1.0)}) is None


def test_an_estimate_of_the_divergence_may_be_negative():
    """In `sampled_token` mode: no line is fitted, and the sign holds all the same."""
    series = dict(enumerate((Evaluated(s, -1.0 - d) for s, d in zip(up_then_down(5), range(COUNT), strict=True)), 1))
    assert "log-log" not in hacking(series)


# A real run


def falling(completions, trainer_state, **_):
    """A score that rises to step 3, and falls from there."""
    return [-abs(trainer_state.global_step - 3.0)] * len(completions)


def test_a_run_is_told_and_its_resumption_is_not(make_trainer, rows, caplog, tmp_path):
    options = {
        "eval_dataset": Dataset.from_list([row for row in rows if row["privileged_context"]][:4]),
        "score_func": falling, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4,
        "num_generations_eval": 1, "learning_rate": 1e-3, "output_dir": str(tmp_path / "run"), "max_steps": 12,
        "save_strategy": "steps", "save_steps": 10,
    }  # fmt: skip

    def warned():
        records = [r.message for r in caplog.records if r.name.startswith("trl_opsd") and r.levelno >= logging.WARNING]
        return [text.removeprefix("[RANK 0] ") for text in records]

    trainer = make_trainer(**options)
    trainer.train()
    (text,) = warned()
    assert text.startswith("Step 8: `eval_avg@1` fell from -0.667") and trainer.hacking_monitor.said == {"eval_avg@1"}
    lines = (Path(options["output_dir"]) / "warnings.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 8, "warning": text}]
    caplog.clear()
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-10"))
    assert warned() == [] and vars(resumed.hacking_monitor) == vars(trainer.hacking_monitor)
