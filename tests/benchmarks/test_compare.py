# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The comparison of methods: one budget, runs that are kept, failures that are told."""

import json
from pathlib import Path

import pytest

import tiny
from benchmarks import __main__
from benchmarks import compare as comparison
from trl_opsd.cli import recipe_check
from trl_opsd.examples import data


ROOT = Path(__file__).parents[2]


@pytest.fixture
def compare(tmp_path, tokenizer, monkeypatch):
    """Run the script on a tiny model; the report and the results by contender and seed."""
    tiny.model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data.prepare("addition", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    options = ["--model", tmp_path / "model", "--data", tmp_path / "data", "--output", tmp_path / "runs",
               "--max_steps", 2, "--eval_steps", 1, "--eval_rows", 4]  # fmt: skip

    def run(*line):
        __main__.main(["compare", *map(str, [*options, *line])])
        results = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").glob("*.json"))]
        return (tmp_path / "runs" / "table.md").read_text(), {(one["contender"], one["seed"]): one for one in results}

    return run


def test_methods_and_controls_are_scored_and_kept(compare, tmp_path, monkeypatch):
    text, results = compare("opsd", "grpo", "opsd+no_pi", "opsd+wrong_pi", "--seeds", 1, 2)
    assert set(results) == {(name, seed) for name in ("opsd", "grpo", "opsd+no_pi", "opsd+wrong_pi") for seed in (1, 2)}
    assert all(list(one["scores"]) == ["0", "1", "2"] and len(one["metrics"]["loss"]) == 2 for one in results.values())
    assert results["opsd", 1]["metrics"]["self_distillation/view_share"] == [1, 1]
    losses = [tuple(results[name, 1]["metrics"]["loss"]) for name in ("opsd", "opsd+no_pi", "opsd+wrong_pi")]
    assert len(set(losses)) == 3, "the contexts differ"
    assert "| `opsd` | code | 0.0% |" in text and "`opsd+wrong_pi`" in text and "Failed" not in text
    assert (tmp_path / "runs" / "addition.png").stat().st_size > 5000

    monkeypatch.setattr(comparison, "run", lambda *_: pytest.fail("a finished run is not repeated"))
    assert compare("opsd", "--seeds", 1)[0] == text
    assert compare()[0] == text


def test_a_failure_is_told_and_tried_again(compare, monkeypatch):
    whole = comparison.run

    def failing(name, *rest):
        if name == "live":
            raise RuntimeError("no luck")
        return whole(name, *rest)

    monkeypatch.setattr(comparison, "run", failing)
    text, results = compare("live", "base")
    assert results["live", 1]["error"] == "RuntimeError: no luck" and "scores" in results["base", 1]
    assert "Failed:\n\n- `live`, seed 1: RuntimeError: no luck" in text and "| `live` |" not in text
    monkeypatch.setattr(comparison, "run", whole)
    text, results = compare("live")
    assert "error" not in results["live", 1] and "Failed" not in text


@pytest.mark.parametrize(
    ("name", "task", "text"),
    [
        ("rlds", "addition", r"There is no 'rlds': it must be one of \['base'"),
        ("opsd+pi", "addition", "A control is no_pi or wrong_pi, got 'pi'"),
    ],
)
def test_mistakes(name, task, text):
    with pytest.raises(ValueError, match=text):
        comparison.setting(name, task)


@pytest.mark.parametrize(
    ("name", "task", "recipe", "reward", "mode"),
    [
        ("opcd", "json", "methods/opcd.yaml", None, "topk_logits"),
        ("opcd", "addition", "smollm2_addition.yaml", None, "topk_logits"),
        ("taid", "json", "smollm2_json.yaml", None, "full_logits"),
        ("rlsd", "json", "smollm2_json.yaml", ["trl_opsd.examples.tasks.valid_json"], "sampled_token"),
    ],
)
def test_a_method_stands_on_its_recipe_or_on_that_of_the_task(name, task, recipe, reward, mode, monkeypatch):
    monkeypatch.setattr(recipe_check, "check_folder", lambda option, value: None)
    path, options = comparison.setting(name, task)
    assert path == ROOT / "recipes" / recipe
    line = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    script_args, args, *_ = comparison.opsd.parse(["--config", str(path), *line])
    assert (args.method, script_args.reward_funcs, args.distillation_mode) == (name, reward, mode)


@pytest.mark.parametrize("name", ["purified+no_pi", "beta_opsd+wrong_pi", "hdpo+wrong_pi"])
def test_a_control_keeps_the_methods_baselines_and_conditions(name, compare):
    _, results = compare(name)
    result = results[name, 1]
    assert "error" not in result and result["metrics"]["self_distillation/view_share"] == [1, 1]


def test_other_options_are_another_run(compare, monkeypatch):
    """What was scored on other rows, or with another model, is not what is asked for."""
    compare("base")

    def anew(*_):
        raise RuntimeError("asked again")

    monkeypatch.setattr(comparison, "run", anew)
    assert "error" not in compare("base")[1]["base", 1]
    assert "asked again" in compare("base", "--eval_rows", 3)[1]["base", 1]["error"]


@pytest.mark.parametrize("task", ["addition", "json"])
@pytest.mark.parametrize("control", ["no_pi", "wrong_pi"])
def test_controls_parse(task, control, monkeypatch):
    monkeypatch.setattr(recipe_check, "check_folder", lambda option, value: None)
    recipe, options = comparison.setting(f"base+{control}", task)
    line = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    _, args, *_ = comparison.opsd.parse(["--config", str(recipe), *line])
    ((_, source),) = args.privileged_source.items()
    assert list(source["source"]) == ["column"]
    assert source["contexts"] == (comparison.TASKS[task].wrong_pi if control == "wrong_pi" else None)
