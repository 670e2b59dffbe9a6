# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Trackers get the metrics of a run that the command starts, and trackio its warnings as alerts."""

import json
import os
import sys
from pathlib import Path

import pytest

import processes
import tiny


ROOT = Path(__file__).parents[2]
PREFIX = "self_distillation/"
RECIPE = """
model_name_or_path: model
dataset_name: data
output_dir: out
per_device_train_batch_size: 4
max_completion_length: 4
max_steps: 4
logging_steps: 1
dataloader_pin_memory: false
save_strategy: "no"
report_to: [trackio, tensorboard]
project: sums
run_name: first
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """Folder, environment and output of a run whose rows have no context, so that it is warned of."""
    folder = tmp_path_factory.mktemp("tracked")
    tiny.model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": [{"role": "user", "content": f"{i}?"}], "privileged_context": None} for i in range(16)]
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    own = {"PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(folder / "trackio"), "CUDA_VISIBLE_DEVICES": ""}
    own |= {"HF_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "trl_opsd.cli.main", "train", "--config", "recipe.yaml"]
    done = processes.run(command, cwd=folder, env=os.environ | own, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, os.environ | own, done


def logged(folder):
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if f"{PREFIX}view_share" in line]


def trackio(run, *words):
    """JSON that trackio's own command prints."""
    command = [sys.executable, "-m", "trackio.cli", *words, "--project", "sums", "--json"]
    done = processes.run(command, env=run[1], timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_trackio_has_the_warnings_as_alerts(run):
    (alert,) = trackio(run, "list", "alerts")["alerts"]
    (warned,) = map(json.loads, (run[0] / "out" / "warnings.jsonl").read_text().splitlines())
    assert (alert["title"], alert["level"], alert["run"]) == ("self-distillation: no views", "warn", "first")
    assert alert["step"] == warned["step"] == 3 and alert["text"] == warned["warning"]
    said = run[2].stdout + run[2].stderr
    assert said.count("no rollout had a privileged context") == 1, "the terminal has it once"


def test_trackio_has_the_metrics(run):
    name = "train/num_tokens"
    assert {name, f"train/{PREFIX}view_share"} <= set(trackio(run, "list", "metrics", "--run", "first")["metrics"])
    values = trackio(run, "get", "metric", "--run", "first", "--metric", name)["values"]
    expected = {line["step"]: line["num_tokens"] for line in logged(run[0])}
    assert {one["step"]: one["value"] for one in values} == pytest.approx(expected) and len(expected) == 4


def test_tensorboard_has_the_metrics(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (run[0] / "out" / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    values = {one.step: one.value for one in events.Scalars("train/num_tokens")}
    assert values == pytest.approx({line["step"]: line["num_tokens"] for line in logged(run[0])})


def test_the_terminal_has_no_noise_of_other_packages(run):
    """No deprecations, no search of DeepSpeed for a device, and in a pipe no progress bars."""
    lines = [line for line in run[2].stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and "no rollout had a privileged context" in lines[0], lines
    assert "accelerator" not in run[2].stdout and "it/s]" not in run[2].stdout
