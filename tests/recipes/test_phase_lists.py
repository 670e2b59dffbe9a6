# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The lists of phases run as they stand, with a tiny model for two steps of each training."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from trl.scripts import sft

import tiny
from trl_opsd import OPSDTrainer
from trl_opsd.cli import main as cli
from trl_opsd.cli import phases
from trl_opsd.examples import data
from trl_opsd.monitoring.json_lines import read
from trl_opsd.trainer.text_generator import TextGenerator


LISTS = sorted(path.stem for path in phases.LISTS.glob("*.yaml"))
MODEL, DATA = "demo/models/smollm2-135m", "demo/data/addition"


def right_where_short(completions, **kwargs):
    """A reward that some of a tiny model's answers have."""
    return [float(len(one[0]["content"]) % 2) for one in completions]


def in_this_process(phase, count):
    """A phase as its process runs it."""
    if phase.command == "sft":
        sft.main(*sft.make_parser().parse_args_and_config(["--config", str(phase.file)], fail_with_unknown_args=False))
    else:
        cli.main([phase.command, "--config", str(phase.file)])
    return 0


@pytest.fixture
def made(tmp_path, tokenizer, monkeypatch):
    """Model and data under the names of the lists; every answer comes to its end, as a random model's does not."""
    monkeypatch.chdir(tmp_path)
    tiny.model(tokenizer, num_hidden_layers=6).save_pretrained(MODEL)
    tokenizer.save_pretrained(MODEL)
    data.prepare("addition", Path(DATA))
    monkeypatch.setattr(phases, "start", in_this_process)

    def said(ids):
        return [tokenizer(f"{'so ' * int(torch.randint(4, ()))}{sum(one) % 97}<|im_end|>")["input_ids"] for one in ids]

    monkeypatch.setattr(OPSDTrainer, "_generate_single_turn", lambda self, ids, *_: (said(ids), None))
    monkeypatch.setattr(TextGenerator, "answers", lambda self, ids, *_: said(ids))


def shortened(path):
    """A list with tiny sizes, and a reward that a tiny model can have."""
    content = yaml.safe_load(path.read_text())
    for phase in content["phases"]:
        options = phase.setdefault("options", {})
        options |= {"layers": 1, "rows": 4} if phase["run"] == "prune" else {"max_steps": 2, "use_cpu": True}
        if phase["run"] == "collect":
            options["collect_rows"] = 16
        if phase["run"] in ("collect", "train") and phase["config"] != "smollm2_addition":
            options["reward_funcs"] = ["test_phase_lists.right_where_short"]
    return content


@pytest.mark.parametrize("name", LISTS)
def test_a_list_runs(name, made, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    Path("list.yaml").write_text(yaml.safe_dump(shortened(phases.LISTS / f"{name}.yaml")))
    cli.main(["phases", "list.yaml", "--output_dir", "out"])
    found = phases.checked(Path("list.yaml"), "out")
    assert all(phase.is_finished for phase in found)
    for phase in found:
        if phase.command == "train":
            logs = [log for log in read(phase.folder / "metrics.jsonl") if "loss" in log]
            assert len(logs) == 2 and all(math.isfinite(log["loss"]) for log in logs)
    assert AutoModelForCausalLM.from_pretrained(found[-1].folder)
