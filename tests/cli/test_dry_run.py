# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The dry run of a recipe: everything that needs no model is checked, and what would be trained is shown."""

import pytest
import yaml

import tiny
from scoring_server import scoring
from trl_opsd.cli import main as cli
from trl_opsd.examples import data


GROUPS = {"reward_funcs": ["trl_opsd.examples.tasks.correct_sum"], "num_generations": 4}


@pytest.fixture
def dry_run(tmp_path, tokenizer, capsys):
    """Output of a dry run with these options. The model's folder holds a tokenizer alone."""
    tokenizer.save_pretrained(tmp_path / "model")
    data.prepare("addition", tmp_path / "data")

    def run(*line, **options):
        recipe = {
            "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "data"), "max_steps": 8,
            "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 4, "report_to": "none",
        } | options  # fmt: skip
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        cli.main(["train", "--config", str(path), "--dry_run", *line])
        return capsys.readouterr().out

    return run


def test_options_batches_launch_and_prompts(dry_run, tmp_path):
    template = "Hint: {privileged_context}!"
    line = "--learning_rate", "1e-4", "--num_processes", "2"
    told = dry_run(*line, method="sdft", privileged_template=template)
    table = {line.split()[0]: line for line in told.splitlines() if line and line[0] != " "}
    assert table["max_steps"].split() == ["max_steps", "8", "recipe,", "line", "3"]
    assert table["learning_rate"].endswith("command line") and "method sdft" in table["teacher_model_kind"]
    assert "weight_decay" not in table, "a default"
    assert "A step trains on 8 completions: 4 in each of 2 process(es) x 1 accumulated." in told
    assert "A generation batch has 8: 8 prompts x 1" in told and "1024 rows: 128 steps an epoch; 8 steps in all" in told
    assert f"accelerate launch --num_processes 2 -m trl_opsd.cli.train --config {tmp_path / 'recipe.yaml'}" in told
    student, _, teacher = told.partition("The student reads:")[2].partition("The teacher reads")
    assert "Answer in one short sentence." in student and "Hint" not in student
    assert "Hint: [[" in teacher and "]]!" in teacher and " = " in teacher.partition("[[")[2].partition("]]")[0]
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_with_a_reward_there_are_groups(dry_run):
    told = dry_run(reward_funcs=["trl_opsd.examples.tasks.correct_sum"], gradient_accumulation_steps=4)
    assert "A generation batch has 16: 2 prompts x 8, and lasts for 4 micro-batch(es)." in told


def test_a_source_of_rollouts_is_named(dry_run):
    told = dry_run(privileged_source="sibling", **GROUPS)
    assert "The teacher reads what SiblingSuccess makes of rollouts: `trl-opsd preflight` shows it." in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"per_device_train_batch_size": 2048}, ["1024 rows", "2048"]),
        ({"dataset_train_split": "training"}, ["`dataset_train_split` is training, and the data has train, test"]),
        ({"bf16": True, "fp16": True}, ["bf16"]),
        (
            GROUPS | {"privileged_source": {"sibling": {"choice": "frist"}}},
            ["choice", "'frist'"],
        ),
    ],
)
def test_a_mistake_is_one_paragraph_without_a_traceback(dry_run, capsys, options, words):
    with pytest.raises(SystemExit) as end:
        dry_run(**options)
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert end.value.code == 2 and "Traceback" not in said
    assert all(word in line for word in words), line


SCORED = {"distillation_mode": "topk_logits", "distillation_topk": 8, "distillation_topk_source": "teacher"}


def test_a_teacher_on_a_server(dry_run, tokenizer, capsys):
    """It is asked what it serves, and checked as before a training."""
    with scoring(tiny.model(tokenizer), tokenizer) as server:
        options = {**SCORED, "teacher_model_kind": "server", "teacher_model_server_url": server.url}
        told = dry_run(**options)
        assert f"The teacher is tiny on {server.url}, which reads 511 tokens." in told
        assert "differ by at most 0 nats (`tolerance`: 0.2)" in told and "The recipe is sound." in told
        server.noise = 1.0
        with pytest.raises(SystemExit):
            dry_run(**options)
        assert "error: The teacher's servers score the same tokens" in capsys.readouterr().err
