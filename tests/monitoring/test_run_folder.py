# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The record of a run on disk, and what a terminal or a pipe shows of it."""

import json
import math
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from transformers.trainer_callback import ProgressCallback

from conftest import length_reward
from runs import Leaves, history
from trl_opsd import OPSDConfig
from trl_opsd.config import OPSDParser
from trl_opsd.monitoring.json_lines import read
from trl_opsd.monitoring.progress import Progress, evaluated, numbers
from trl_opsd.monitoring.run_folder import commit


SECRET = "the-secret-of-the-test"
TIMES = ("runtime", "per_second", "step_time")


def rows(count=8, context="It is so."):
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"{i}?"}], "privileged_context": context} for i in range(count)]
    )


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]


def as_told(trainer):
    """The trainer's own history, as JSON holds it."""
    return [
        {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in log.items()}
        for log in trainer.state.log_history
    ]


def test_each_log_is_a_line(make_trainer):
    trainer = make_trainer(
        max_steps=4, logging_steps=1, eval_dataset=rows(2), eval_strategy="steps", eval_steps=2, num_iterations=2
    )
    trainer.evaluate()
    assert [line["step"] for line in lines(trainer.args.output_dir)] == [0]
    trainer.train()
    told = lines(trainer.args.output_dir)
    assert told[1:] == as_told(trainer) and "train_runtime" in told[-1]
    assert [line["step"] for line in told if "eval_loss" in line] == [0, 2, 4]


def test_a_resumed_run_goes_on_where_its_checkpoint_was(make_trainer, tmp_path):
    """Lines after the checkpoint, and a half one, are gone; the whole equals an uninterrupted run's."""
    options = {"max_steps": 5, "logging_steps": 1, "save_strategy": "steps", "save_steps": 2, "eval_dataset": rows(2)}
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **options)
    whole.evaluate()
    whole.train()
    folder = tmp_path / "killed"
    killed = make_trainer(output_dir=str(folder), callbacks=[Leaves(3)], **options)
    killed.evaluate()
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert [line["step"] for line in lines(folder)] == [0, 1, 2, 3]
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"loss": 0.')
    (folder / "warnings.jsonl").write_text('{"step": 1, "warning": "early"}\n{"step": 3, "warning": "late"}\n{"st')
    resumed = make_trainer(output_dir=str(folder), **options)
    resumed.train(resume_from_checkpoint=True)
    assert history(resumed) == history(whole)
    assert lines(folder)[1:] == as_told(resumed)
    assert [line["step"] for line in lines(folder)] == [line["step"] for line in lines(tmp_path / "whole")]
    assert lines(folder, "warnings.jsonl") == [{"step": 1, "warning": "early"}]


def test_a_new_run_in_the_same_folder_begins_anew(make_trainer):
    first = make_trainer(max_steps=1, logging_steps=1)
    (Path(first.args.output_dir) / "warnings.jsonl").write_text('{"step": 0, "warning": "of another run"}\n')
    first.train()
    second = make_trainer(max_steps=2, logging_steps=1, output_dir=first.args.output_dir)
    second.train()
    assert [line["step"] for line in lines(second.args.output_dir)] == [1, 2, 2]
    assert lines(second.args.output_dir, "warnings.jsonl") == []


def test_settings_with_their_origin_and_no_context(make_trainer, monkeypatch):
    trainer = make_trainer(
        dataset=rows(context=SECRET), max_steps=1, method="sdft", learning_rate=3e-5,
        privileged_template=f"{SECRET} {{privileged_context}}", hub_token=SECRET,
    )  # fmt: skip
    trainer.train()
    text = (Path(trainer.args.output_dir) / "run.json").read_text()
    assert SECRET not in text and SECRET not in (Path(trainer.args.output_dir) / "metrics.jsonl").read_text()
    told = json.loads(text)
    assert told["options"]["learning_rate"] == {"value": 3e-5, "origin": "given"}
    assert told["options"]["teacher_model_kind"]["origin"] == "method sdft"
    assert told["options"]["warmup_steps"]["origin"] == "default"
    assert told["data"]["train"]["rows"] == 8 and told["data"]["train"]["fingerprint"]
    assert told["versions"]["trl"] == "1.16.0" and told["commit"] == commit()


def test_origins_of_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output_dir: out\nbf16: false\nmethod: rlsd\nteacher_sync_steps: 4\n")
    line = ["--config", str(recipe), "--learning_rate", "1e-4", "--max-steps=3"]
    (args,) = OPSDParser((OPSDConfig,)).parse_args_and_config(line)
    assert args.max_steps == 3
    assert args.origins["learning_rate"] == args.origins["max_steps"] == "command line"
    assert args.origins["teacher_sync_steps"] == args.origins["bf16"] == f"recipe {recipe}"
    assert args.origins["teacher_model_kind"] == "method rlsd" and "warmup_steps" not in args.origins


def test_warnings_are_kept(make_trainer):
    trainer = make_trainer(dataset=rows(context=None), max_steps=4, logging_steps=1)
    trainer.train()
    (line,) = lines(trainer.args.output_dir, "warnings.jsonl")
    assert line["step"] == 3 and "no rollout had a privileged context" in line["warning"]


def test_a_half_line_is_not_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert read(tmp_path / "a.jsonl") == [{"step": 1}]


# The terminal


def test_each_log_is_a_plain_line_in_a_pipe(make_trainer, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    trainer = make_trainer(
        dataset=rows(), eval_dataset=rows(2), max_steps=2, logging_steps=1, disable_tqdm=False, eval_strategy="steps",
        eval_steps=2,
    )  # fmt: skip
    assert [type(one) for one in trainer.callback_handler.callbacks if isinstance(one, ProgressCallback)] == [Progress]
    capsys.readouterr()
    trainer.train()
    out, err = capsys.readouterr()
    told = [line for line in out.splitlines() if line.startswith("step ")]
    assert (
        len(told) == 3 and told[0].startswith("step 1/2  loss ") and told[2].startswith("step 2/2  evaluation: loss ")
    )
    assert "divergence" in told[0] and "views 100%" in told[0] and "{" not in out and "it/s" not in err


def test_a_bar_with_five_numbers_in_a_terminal(make_trainer, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    trainer = make_trainer(dataset=rows(), max_steps=2, logging_steps=1, disable_tqdm=False)
    capsys.readouterr()
    trainer.train()
    out, err = capsys.readouterr()
    assert "{" not in out and "step 1/2" not in out
    assert "2/2" in err and "divergence" in err and "views 100%" in err


def test_a_progress_bar_of_ones_own_stays(make_trainer):
    class Mine(ProgressCallback):
        pass

    trainer = make_trainer(disable_tqdm=True, callbacks=[Mine()])
    kinds = {type(one) for one in trainer.callback_handler.callbacks}
    assert Mine in kinds and Progress not in kinds


@pytest.mark.parametrize("reward_funcs", [None, length_reward])
def test_reward_stands_in_for_the_loss(make_trainer, reward_funcs):
    trainer = make_trainer(dataset=rows(), max_steps=1, logging_steps=1, reward_funcs=reward_funcs, num_generations=2)
    trainer.train()
    text = numbers(trainer.state.log_history[0])
    assert ("reward " in text) == (reward_funcs is not None) and ("loss " in text) == (reward_funcs is None)
    assert len(text.split("  ")) == 5
    assert evaluated(trainer.state.log_history[0]) == ""
