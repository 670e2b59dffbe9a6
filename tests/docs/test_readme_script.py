# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The script in the README runs as it is printed, with a tiny model in place of the Hub's."""

import json
import re
from pathlib import Path

import tiny


ROOT = Path(__file__).parents[2]
MODEL = '"Qwen/Qwen3-0.6B"'


def test_the_script_of_the_readme_runs(tmp_path, tokenizer, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    (script,) = [block for block in blocks if "trainer.save_model()" in block]
    tiny.model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert script.count(MODEL) == 1
    names = {}
    exec(script.replace(MODEL, repr(str(tmp_path / "model"))), names)
    trainer = names["trainer"]
    assert trainer.num_generations == 1 and trainer.state.global_step == 12
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 12 and all(entry["self_distillation/view_share"] == 1 for entry in logs)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 13
    assert json.loads((tmp_path / "out" / "run.json").read_text())["options"]["learning_rate"]["origin"] == "given"
