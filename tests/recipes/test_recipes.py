# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The recipes of sources run as they stand, with a tiny model for two steps: their contexts are read, or counted."""

import json
import math
from pathlib import Path

import pytest
import yaml

import tiny
from scoring_server import scoring
from trl_opsd.cli import train
from trl_opsd.examples import data


ROOT = Path(__file__).parents[2]


TASKS = {"demo/data/json": "json", "demo/data/addition": "addition", "demo/data/document": "document"}
RECIPES = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((ROOT / "recipes").glob("smollm2_*.yaml"))
    if "use_vllm" not in path.read_text()
}
# Those of agents are in test_agents.py
RECIPES = {name: recipe for name, recipe in RECIPES.items() if recipe["dataset_name"] in TASKS}
# A tiny model is never right, repeats no answer and writes no form that an author must keep to: what is counted instead
WITHOUT_VIEWS = {
    "smollm2_critic": "critic_malformed",
    "smollm2_located_hint": "reflection_malformed",
    "smollm2_reflection": "reflection_malformed",
    "smollm2_skills": "skills_missing",
}
SAID = {"smollm2_pseudo_reference": "12<|im_end|>"}  # by every rollout: a tiny model names no number


@pytest.fixture
def teacher(tokenizer):
    """A server of the tiny model, for recipes whose teacher is on one."""
    with scoring(tiny.model(tokenizer, seed=1, max_position_embeddings=4096), tokenizer) as server:
        yield server


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name, tmp_path, tokenizer, monkeypatch, teacher):
    recipe = RECIPES[name]
    if "retrieval" in str(recipe.get("privileged_source")):
        pytest.importorskip("bm25s")
    if recipe.get("load_in_4bit"):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes, which quantizes, is not installed")
    tiny.model(tokenizer, max_position_embeddings=4096).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = {
        "model_name_or_path": tmp_path / "model", "output_dir": tmp_path / "out", "max_completion_length": 8,
        "dataset_name": data.prepare(TASKS[recipe["dataset_name"]], tmp_path / "data"), "max_steps": 2,
    }  # fmt: skip
    if "prefix_text" in recipe:
        options["prefix_text"] = tmp_path / "data" / "text" / "document.txt"
    if "teacher_adapters" in recipe:
        adapters = {name: tiny.save_adapter(tmp_path / name, 0) for name in recipe["teacher_adapters"]}
        options["teacher_adapters"] = json.dumps(adapters)
    if "teacher_model_server_url" in recipe:
        options["teacher_model_server_url"] = teacher.url
    line = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    parsed = train.parse(["--config", str(ROOT / "recipes" / f"{name}.yaml"), *line])
    trainer = train.build_trainer(*parsed[:3], train.load_data(parsed[0], parsed[3]))
    if name in SAID:
        ids = tokenizer(SAID[name])["input_ids"]
        monkeypatch.setattr(trainer, "_generate_single_turn", lambda prompts, *_: ([ids] * len(prompts), None))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2 and all(math.isfinite(entry["loss"]) for entry in logs)
    for entry in logs:
        if name in WITHOUT_VIEWS:
            assert entry["self_distillation/view_share"] > 0 or entry[f"self_distillation/{WITHOUT_VIEWS[name]}"] > 0
        else:
            assert entry["self_distillation/view_share"] > 0 and entry["self_distillation/divergence"] > 0
