# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Experiments on the lab model: contenders, phases, results that are kept, intervals and tables."""

import json

import numpy as np
import pytest

from benchmarks import __main__, kept
from benchmarks.evidence import experiments, rows, runs, tables, training
from benchmarks.evidence.statistics import interval
from benchmarks.lab import pretraining
from benchmarks.lab.tasks import feedback_on, result_of
from trl_opsd import OPSDConfig, Rollout


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The lab with a model of random weights."""
    folder = tmp_path_factory.mktemp("lab")
    tokenizer = pretraining.make_tokenizer()
    pretraining.make_model(tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return training.Lab(folder, "sum", problems=4, steps=2)


def test_contexts_of_rows():
    data = rows.make_rows("sum")
    assert len(data) == rows.TRAIN["sum"] and len(set(data["question"])) == len(data)
    for row in data.select(range(50)):
        assert row["prompt"] == [{"role": "user", "content": row["question"]}]
        assert feedback_on(row["solution"], row["question"]) == "all right"
        assert result_of(row["solution"]) == row["result"] == str(eval(row["question"].rstrip("?")))
    wrong = [result_of(row["wrong"]) != row["result"] for row in data]
    assert 0.6 < sum(wrong) / len(wrong) < 0.8


def test_shuffled_labels_are_as_many_and_others():
    questions, texts = ["12+34?", "11+11?", "47+38?", "20+30?"] * 8, ["2+4+0=6,1+3+0=4;46.", "", "", ""] * 8
    true, shuffled = (one(texts, questions) for one in (rows.correct, rows.shuffled_correct))
    assert sum(true) == sum(shuffled) == 8 and true != shuffled


@pytest.mark.parametrize("name", experiments.CONTENDERS)
def test_options_of_contenders(name, tmp_path):
    """Each phase is one that there is, and its options make a config."""
    for number, phase in enumerate(experiments.CONTENDERS[name], 1):
        options = dict(phase)
        run = options.pop("run")
        assert {options.get("model", 0), options.get("teacher", 0), options.get("rows", 0)} <= set(range(number))
        for own in ("reward", "model", "teacher", "rows", "steps", "layouts", "keep"):
            options.pop(own, None)
        if run != "sft":
            OPSDConfig(str(tmp_path), **{**training.COMMON, **options})


def test_experiments_name_contenders():
    named = {name for one in experiments.EXPERIMENTS.values() for name in (one.baseline, *one.contenders)}
    assert named == set(experiments.CONTENDERS)
    assert len({runs.file_name(name, 1) for name in named}) == len(named), "each has a file of its own"
    assert runs.names_of(["turns"], ["trd"]) == ["trd", "trd, wrong context", "trd, other row"]
    assert runs.names_of(["turns", "joint"], None).count("grpo") == 1


@pytest.mark.parametrize(
    "name", ["rltf_fm, shuffled critiques", "pi_distill", "vpd, shuffled labels", "atesd", "trd", "opsd, other row"]
)
def test_a_contender_runs(name, lab):
    found = training.Contender(lab, 1).run(experiments.CONTENDERS[name])
    assert list(found["scores"]) == [0, 1, 2] and len(found["right"]) == 4 and found["steps_done"] == 2
    assert 3 < found["critique_loss"] < 5 and found["tokens"] > 0


def test_phases_follow_each_other(lab, monkeypatch):
    """The second model is that of the fine-tuning, the teacher the first one, and steps add up."""
    monkeypatch.setattr(training, "COLLECTED", 32)
    phases = [
        experiments.collected(["distil"], ["unique"], privileged_source=experiments.COLUMN, num_generations=1),
        experiments.sft(1, 0.5),
        {"run": "train", "model": 2, "teacher": 0, "num_generations": 1, "privileged_source": experiments.COLUMN},
    ]
    contender = training.Contender(lab, 1)
    found = contender.run(phases)
    assert found["collected"] == {"distil": 32} and found["steps_done"] == 3 and list(found["scores"]) == [0, 1, 2, 3]
    weights = [contender.weights[number]["model.embed_tokens.weight"] for number in (0, 2, 3)]
    assert not weights[0].equal(weights[1]) and not weights[1].equal(weights[2])


def test_runs_are_kept_and_failures_repeated(lab, tmp_path, monkeypatch, capsys):
    def start(steps=2):
        line = ["evidence", "turns", "--contenders", "grpo", "--seeds", "1", "--steps", str(steps), "--problems", "4"]
        __main__.main([*line, "--model", str(lab.folder), "--output", str(tmp_path)])
        return json.loads((tmp_path / "grpo-1.json").read_text()), capsys.readouterr().out

    made = []
    monkeypatch.setattr(runs, "run", lambda *args: made.append(args) or 1 / 0)
    result, text = start()
    assert result["error"].startswith("ZeroDivisionError") and "- grpo, seed 1: ZeroDivisionError" in text
    monkeypatch.undo()
    whole, text = start()
    assert whole["seed"] == 1 and whole["phases"] == experiments.CONTENDERS["grpo"] and "| grpo | 1 |" in text
    monkeypatch.setattr(runs, "run", lambda *args: made.append(args) or {"scores": {}, "right": "0000"} | whole)
    assert start()[0] == whole and len(made) == 1, "a finished run is not repeated"
    start(steps=3)
    assert len(made) == 2, "with other steps it is another run"


def test_the_same_seed_gives_the_same_run(lab):
    one, same, other = (training.Contender(lab, seed).run(experiments.CONTENDERS["opsd"]) for seed in (1, 1, 2))
    assert one["metrics"] == same["metrics"] != other["metrics"]


def test_an_unknown_experiment(tmp_path):
    with pytest.raises(SystemExit, match="There is no experiment 'turn'"):
        __main__.main(["evidence", "turn", "--output", str(tmp_path)])


def test_intervals():
    """Against the standard error where it is known, and the sharper one of paired problems."""
    rng = np.random.default_rng(1)
    scores = (rng.random((8, 400)) < 0.5).astype(float)
    found = interval(scores)
    error = np.sqrt(0.25 / 3200)
    assert found.mean == scores.mean() and 3.9 * error < found.high - found.low < 7.5 * error  # a cautious one
    alike = np.repeat((rng.random((1, 400)) < 0.5).astype(float), 8, axis=0)  # seeds that agree
    assert interval(alike).high - interval(alike).low > 3.2 * np.sqrt(0.25 / 400)
    paired = interval(alike, alike)
    assert (paired.mean, paired.low, paired.high) == (0, 0, 0)
    seeds = np.repeat(np.array([[0.0], [1.0], [1.0]]), 50, axis=1)  # problems that agree
    assert interval(seeds).low == 0 and interval(seeds).high == 1
    assert str(interval(np.ones((2, 3)))) == "100.0 [100.0, 100.0]"
    with pytest.raises(ValueError, match="of 2 problems and those beside them of 3"):
        interval(np.ones((1, 2)), np.ones((1, 3)))


def test_a_table():
    common = {"sampled": 0.5, "with_solution": 1.0, "with_hint": 0.25}
    done = {
        "grpo": [{"right": "0101", "seconds": 2.0, **common}, {"right": "0101", "seconds": 2.0, **common}],
        "opsd": [{"right": "1111", "seconds": 3.0, **common}, {"right": "0101", "seconds": 3.0, **common}],
    }
    lines = tables.experiment_table(experiments.EXPERIMENTS["turns"], done).splitlines()
    assert lines[2].startswith("| grpo | 2 | 50.0 [") and lines[2].endswith(
        "| 50.0 to 50.0 |  | 50.0 | 100.0 | 25.0 | 1.00 |"
    )
    assert lines[3].startswith("| opsd | 2 | 75.0 [") and "| 50.0 to 100.0 | 25.0 [" in lines[3]
    assert lines[3].endswith("| 1.50 |") and len(lines) == 4


def test_shuffled_feedback_comes_from_another_rollout():
    notes = [{"feedback": f"wrong at {i}"} for i in range(4)]
    group = [Rollout({}, "Q", "A", [1], [2], [], {}, 0.0, False, notes[i], 0, i, 0, False, True) for i in range(4)]
    texts = [views[0].context for views in rows.shuffled_feedback([group])]
    assert texts == ["wrong at 2", "wrong at 3", "wrong at 0", "wrong at 1"]


def test_an_error_is_kept_with_its_key(tmp_path):
    path = tmp_path / "one.json"
    assert kept.kept(path, {"seed": 1}, lambda: 1 / 0)["seed"] == 1
    assert kept.kept(path, {"seed": 1}, lambda: {"x": (1, 2)}) == {"seed": 1, "x": (1, 2)}
    assert kept.kept(path, {"seed": 1}, lambda: 1 / 0) == {"seed": 1, "x": [1, 2]}
