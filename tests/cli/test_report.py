# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The command `trl-opsd report`: pages of runs, the report in a terminal, and mistakes."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from rich.console import Console

import processes
import tiny
from conftest import length_reward
from token_records import Vocabulary, head, json_task, write_run
from trl_opsd.cli import main as cli
from trl_opsd.cli import report as report_command
from trl_opsd.examples import data
from trl_opsd.token_report.load import Group, RunLog
from trl_opsd.token_report.record import path_of
from trl_opsd.token_report.terminal import print_report


ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    vocabulary = Vocabulary()
    known = {"rewards": {"right": 1.0}, "success": True, "leak": "quote: Context"}
    lines = [json_task(vocabulary, index=index, **known) for index in (0, 1)]
    steps = {step: (head(vocabulary, step), lines) for step in (1, 4)}
    return write_run(tmp_path / "run", steps, teacher_model_kind="base", method="opsd", learning_rate=2e-5)


def data_of(page):
    """Data that a page embeds."""
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, flags=re.S)[1])


def report(capsys, *argv):
    cli.main(["report", *map(str, argv)])
    return capsys.readouterr().out


def test_a_page_with_all_steps(capsys, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = report(capsys, run)
    assert "The report of 4 rollouts is in report.html" in told and (tmp_path / "report.html").as_uri() in told
    assert "--no_context" in told
    data = data_of(tmp_path / "report.html")
    assert [group["label"] for group in data["groups"]] == ["step 1", "step 4"]
    assert data["settings"] == {"method": "opsd", "teacher": "base", "learning rate": 2e-5}
    assert [check["passed"] for check in data["groups"][0]["checks"]] == [True, None, True, True]


def test_steps_and_rows_are_chosen(capsys, run, tmp_path):
    report(capsys, run, "--out", tmp_path / "x.html", "--step", 4, "--rows", 1)
    (group,) = data_of(tmp_path / "x.html")["groups"]
    assert group["label"] == "step 4" and len(group["rollouts"]) == 1 == group["summary"]["rollouts"]


def test_a_large_page_is_told(capsys, run, tmp_path, monkeypatch):
    words = "`--step` and `--rows` choose less"
    assert words not in report(capsys, run, "--out", tmp_path / "x.html")
    monkeypatch.setattr(report_command, "LARGE", 1000)
    assert words in report(capsys, run, "--out", tmp_path / "x.html")


def test_without_contexts(capsys, run, tmp_path):
    report(capsys, run, "--out", tmp_path / "with.html")
    told = report(capsys, run, "--out", tmp_path / "without.html", "--no_context")
    with_it, without = ((tmp_path / name).read_text() for name in ("with.html", "without.html"))
    shown = "Q. Context. A.", "quote: Context", '["Context.",1]'
    assert '["Context.",1]' in with_it and "quote: Context" in with_it
    assert not any(text in without for text in shown) and "Context." not in without and "--no_context" not in told
    assert "Q. A." in without, "what the student reads stays"


def test_in_the_terminal(capsys, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = report(capsys, run, "--terminal", "--step", 1)
    for words in ('would rather write ‹{"›', "95% of the divergence", "‹ moon›", "✓ No divergence is negative.",
                  "Rollout 1, right 1.0, success, leak: quote: Context", "The moon result<|im_end|>"):  # fmt: skip
        assert words in told, words
    assert not (tmp_path / "report.html").exists()
    report(capsys, run, "--terminal", "--out", tmp_path / "both.html")
    assert (tmp_path / "both.html").exists()


def test_colours_in_the_terminal():
    vocabulary = Vocabulary()
    line = json_task(vocabulary)
    console = Console(force_terminal=True, color_system="standard", file=io.StringIO(), width=100)
    print_report([Group("step 1", head(vocabulary), [line])], RunLog("run"), console)
    told = console.file.getvalue()
    for words in ("\x1b[1;7;33mThe\x1b[0m", "\x1b[34m moon\x1b[0m", "\x1b[2m result\x1b[0m"):
        assert words in told, "much less, a little more, not taught"


def test_nothing_reaches_the_terminal_as_a_command(capsys, tmp_path):
    vocabulary = Vocabulary()
    line = json_task(vocabulary)
    line["texts"] = ["\x1b[2J", "\u202eabc", "[bold]", "\x07"]
    told = report(capsys, write_run(tmp_path, {1: (head(vocabulary), [line])}), "--terminal")
    assert not {"\x1b", "\u202e", "\x07"} & set(told) and "[U+001B][2J[U+202E]abc[bold][U+0007]" in told


def test_it_loads_no_torch(run, tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'trl', 'peft', 'datasets', 'accelerate'): sys.modules[name] = None\n"
        "from trl_opsd.cli.main import main\n"
        f"main(['report', {str(run)!r}, '--terminal', '--out', {str(tmp_path / 'x.html')!r}])\n"
    )
    done = processes.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)
    assert done.returncode == 0 and (tmp_path / "x.html").exists(), done.stderr[-2000:]


def test_a_run_of_a_trainer(capsys, make_trainer, rows, tmp_path):
    """From training to the page, with rewards; the numbers are those of the record and of the log."""
    dataset = Dataset.from_list([row for row in rows if row["privileged_context"]])
    trainer = make_trainer(log_tokens=2, dataset=dataset, reward_funcs=length_reward)
    trainer.train()
    report(capsys, trainer.args.output_dir, "--out", tmp_path / "x.html")
    data = data_of(tmp_path / "x.html")
    assert [group["step"] for group in data["groups"]] == [1, 2]
    assert all(check["passed"] is not False for group in data["groups"] for check in group["checks"])
    charts = {chart["title"]: chart["series"] for chart in data["charts"]}
    logged = [line["self_distillation/divergence"] for line in trainer.state.log_history[:2]]
    assert charts["Divergence"][0]["points"] == [[1, logged[0]], [2, logged[1]]]
    assert charts.keys() == {"Score", "Divergence", "Length", "Entropy", "Rollouts with a view"}


def test_checkpoints_of_a_recipe(capsys, make_trainer, tokenizer, tmp_path):
    tiny.model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data.prepare("addition", tmp_path / "data")
    recipe = {
        "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "data"), "use_vllm": True,
        "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4, "max_completion_length": 4,
        "bf16": False, "gradient_checkpointing": False, "score_func": "trl_opsd.examples.tasks.correct_sum",
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ["--config", tmp_path / "recipe.yaml", "--checkpoint", "start", tmp_path / "model"]
    told = report(capsys, *command, "--rows", 3, "--out", tmp_path / "x.html")
    assert "The report of 6 rollouts" in told
    first, second = data_of(tmp_path / "x.html")["groups"]
    assert first["label"] == "start" and second["label"].endswith("/model") and first["fixed"]
    assert first["rollouts"] == second["rollouts"], "the same weights and random numbers"
    assert len(first["rollouts"]) == 3 and first["rollouts"][0]["rewards"] == {"score": 0}
    assert [check["passed"] for check in first["checks"]] == [True, None, True, True]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "Name the `output_dir` of a run, or `--config`"),
        (["run", "--config", "smollm2_json"], "one of them"),
        (["--config", "smollm2_json"], "`--config` and `--checkpoint` belong together"),
        (["run", "--checkpoint", "x"], "belong together"),
        (["--config", "smollm2_json", "--checkpoint", "x", "--step", "1"], "`--step` chooses among the records"),
        (["--config", "smolm2_json", "--checkpoint", "x"], "smollm2_json"),
    ],
)
def test_options_that_do_not_go_together(capsys, argv, words):
    with pytest.raises(SystemExit) as end:
        cli.main(["report", *argv])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and words in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "argv", "words"),
    [
        ("folder", [], "There is no folder"),
        ("records", [], "train with `log_tokens: 4` in the recipe"),
        (None, ["--step", "2", "4", "7"], "has no record of step 2, 7: there are those of 1, 4."),
        (None, ["--out", "no/such/folder/x.html"], "`--out`: no/such/folder/x.html can't be written: No such file"),
        (None, ["--rows", "0"], "`--rows` must be at least 1 (got 0)."),
        (None, ["--out", "."], "`--out`: . can't be written: Is a directory"),
        ("broken", [], "step-000004.jsonl.gz is no record of tokens"),
        ("settings", [], "run.json is no settings file of a run"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, run, change, argv, words):
    path = run
    if change == "folder":
        path = run / "none"
    if change == "records":
        for file in path_of(run, 1).parent.iterdir():
            file.unlink()
    if change == "broken":
        path_of(run, 4).write_text("no gzip")
    if change == "settings":
        (run / "run.json").write_text("{")
    with pytest.raises(SystemExit) as end:
        cli.main(["report", str(path), *argv])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and words in said and len(said.splitlines()) == 1


def test_what_the_terminal_needs_is_named(capsys, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delitem(sys.modules, "trl_opsd.token_report.terminal", raising=False)
    with pytest.raises(SystemExit) as end:
        cli.main(["report", str(run), "--terminal"])
    assert end.value.code == 2 and "`--terminal` needs the package rich: pip install rich" in capsys.readouterr().err
