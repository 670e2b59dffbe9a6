# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A resumed run is the uninterrupted one, and a half-written checkpoint is never taken for a whole one."""

import json
import logging
import os
import random
import resource
import shutil
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import kill_worker
from conftest import length_reward
from launch import outcome
from test_drop_in import assert_same_run, history
from trl_opsd.checkpoints import MARKER, is_complete, last_complete, rotate, to_resume, writing
from trl_opsd.diagnostics import SignalMonitor


KILL_WORKER = Path(kill_worker.__file__)
# A generation batch lasts for four steps
BUFFERED = {
    "reward_funcs": length_reward, "gradient_accumulation_steps": 1, "steps_per_generation": 2, "num_iterations": 2,
    "teacher_model_kind": "ema", "save_strategy": "steps", "save_steps": 1, "logging_steps": 3,
}  # fmt: skip


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("trl_opsd") and r.levelno == logging.WARNING]


# Killed runs


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("data", "kills"), [("map", 20), ("stream", 2)])
def test_killed_at_random_points(tmp_path, data, kills):
    """Weights, optimizer, teacher, random state, logs, completion tables and every micro-batch, to the last bit."""
    seed = random.randrange(10**6)
    code, output = outcome(KILL_WORKER, str(tmp_path), str(kills), str(seed), data, processes=1, seconds=380)
    assert code == 0, f"seed {seed}: {output[-3000:]}"
    result = json.loads(output.splitlines()[-1])
    assert result["kills"] == kills, f"seed {seed}: {result}"
    assert result["half_written"] >= kills // 5, f"seed {seed}: {result}"


class Leaves(TrainerCallback):
    """Ends a run after a step, as a kill would: nothing is tidied up."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(make_trainer, step, **options):
    """A run that ends after `step` steps; the folder stays."""
    with pytest.raises(KeyboardInterrupt):
        make_trainer(callbacks=[Leaves(step)], **options).train()


# Which checkpoint


@pytest.fixture
def run(make_trainer, tmp_path):
    """A run with checkpoints at each of its three steps."""
    make_trainer(max_steps=3, save_strategy="steps", save_steps=1).train()
    return tmp_path / "out"


def test_a_half_written_checkpoint_is_passed_over(make_trainer, run, caplog):
    (run / "checkpoint-3" / MARKER).touch()
    trainer = make_trainer(max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert any("checkpoint-2" in text and "Passed over, as half-written: checkpoint-3" in text
               for text in warnings(caplog))  # fmt: skip
    assert [log["step"] for log in trainer.state.log_history] == [1, 2, 3, 3]


def test_a_checkpoint_without_its_last_file_is_half_written(make_trainer, run):
    (run / "checkpoint-3" / "trainer_state.json").unlink()
    assert last_complete(run) == run / "checkpoint-2"


def test_a_named_half_written_checkpoint_is_refused(make_trainer, run):
    (run / "checkpoint-3" / MARKER).touch()
    with pytest.raises(ValueError, match=r"checkpoint-3 is half-written\. The last complete checkpoint is .*point-2"):
        make_trainer().train(resume_from_checkpoint=str(run / "checkpoint-3"))


def test_no_complete_checkpoint(make_trainer, run, tmp_path):
    for folder in run.glob("checkpoint-*"):
        (folder / MARKER).touch()
    named = r"no complete checkpoint.*half-written \(checkpoint-1, checkpoint-2, checkpoint-3\).*start without"
    with pytest.raises(ValueError, match=named):
        make_trainer().train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        make_trainer(output_dir=str(tmp_path / "nowhere")).train(resume_from_checkpoint=True)


def test_checkpoints_by_step_and_not_by_name(tmp_path):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"


def test_a_checkpoint_of_grpo_trainer(make_trainer, rows, caplog):
    """It has no state of a run: that is said, and training goes on where its rows are."""
    options = {"reward_funcs": length_reward, "save_strategy": "steps", "save_steps": 1, "steps_per_generation": 2}
    make_trainer(trainer_class=GRPOTrainer, config=GRPOConfig, max_steps=3, **options).train()
    trainer = make_trainer(max_steps=4, **options)
    trainer.train(resume_from_checkpoint=True)
    assert any("it holds no run_state_0.pt" in text for text in warnings(caplog))
    assert trainer._step == trainer.state.global_step == 4


# Writing and removing


class Disk:
    """What `writing` needs of an accelerator, of one process."""

    is_local_main_process, process_index = True, 0

    def wait_for_everyone(self):
        pass


def test_the_marker_is_there_while_anything_else_is(tmp_path):
    folder = tmp_path / "out" / "checkpoint-5"
    with writing(folder, Disk(), True):
        assert (folder / MARKER).exists() and not is_complete(folder)
        (folder / "trainer_state.json").touch()
        assert not is_complete(folder)
    assert is_complete(folder) and not (folder / MARKER).exists()


def test_a_disk_that_takes_no_byte(tmp_path):
    """Not even the marker: then there is no checkpoint of that name either."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError) as caught, writing(tmp_path / "checkpoint-5", Disk(), True):
            pytest.fail("nothing should be written without a marker")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert "checkpoint-5 was written (process 0)" in caught.value.__notes__[0]
    assert not (tmp_path / "checkpoint-5").exists()


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path):
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6", ".checkpoint-1.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    (tmp_path / "checkpoint-4" / MARKER).touch()
    with writing(tmp_path / "checkpoint-6", Disk(), True):
        pass
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-6"]
    assert not os.listdir(tmp_path / "checkpoint-6") and os.listdir(tmp_path / "checkpoint-2")


@pytest.mark.parametrize(
    ("limit", "best", "stays"),
    [(None, None, [2, 4, 6, 10]), (3, None, [4, 6, 10]), (1, None, [10]), (1, 2, [2, 10]), (2, 4, [4, 10]),
     (3, 2, [2, 6, 10])],
)  # fmt: skip
def test_rotation_is_that_of_transformers(tmp_path, limit, best, stays):
    for age, step in enumerate((2, 4, 6, 10)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (time.time() + 10 * age,) * 2)
    rotate(tmp_path / "checkpoint-10", limit, None if best is None else str(tmp_path / f"checkpoint-{best}"))
    assert sorted(os.listdir(tmp_path)) == sorted(f"checkpoint-{step}" for step in stays)


def test_the_older_checkpoint_stays_until_the_new_one_is_complete(make_trainer, tmp_path):
    """Here the writing fails after transformers has done its part, at the end of which it rotates."""
    trainer = make_trainer(max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1)
    save = trainer.save_own_state

    def full(folder):
        if folder.name == "checkpoint-2":
            raise OSError("No space left on device")
        save(folder)

    trainer.save_own_state = full
    with pytest.raises(OSError):
        trainer.train()
    assert trainer.args.save_total_limit == 1
    assert last_complete(tmp_path / "out") == tmp_path / "out" / "checkpoint-1"
    make_trainer(max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1).train(True)
    assert [path.name for path in (tmp_path / "out").glob("*checkpoint*")] == ["checkpoint-3"]
    saved = torch.load(tmp_path / "out" / "checkpoint-3" / "training_args.bin", weights_only=False)
    assert saved.save_total_limit == 1


def test_what_is_pushed_is_complete(make_trainer, monkeypatch):
    """Transformers pushes in the middle of writing. There is no Hub here: its method is asked what it would read."""
    seen = []
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: seen.append(os.listdir(folder)))
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=1, teacher_model_kind="ema")
    trainer.args.push_to_hub = True
    trainer.train()
    assert len(seen) == 2
    for files in seen:
        assert {"teacher.safetensors", "run_state_0.pt", "optimizer.pt"} <= set(files) and MARKER not in files


def test_the_best_checkpoint_stays(make_trainer, rows, tmp_path):
    trainer = make_trainer(
        max_steps=4, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, save_total_limit=1,
        metric_for_best_model="eval_num_tokens", greater_is_better=False, load_best_model_at_end=True,
        eval_dataset=Dataset.from_list(rows[:4]),
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "out" / "checkpoint-1")
    assert (tmp_path / "out" / "checkpoint-1" / "model.safetensors").exists()


# What is restored


LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2)
GROUPS = {"reward_funcs": length_reward, "steps_per_generation": 2, "num_iterations": 2}
RUNS: dict[str, dict] = {
    "pure, frozen": {"steps_per_generation": 3},
    "live": {**GROUPS, "teacher_model_kind": "live"},
    "snapshot": {**GROUPS, "teacher_model_kind": "snapshot", "teacher_sync_steps": 2},
    "LoRA, frozen": {**GROUPS, "peft_config": LORA},
    "LoRA, ema": {**GROUPS, "peft_config": LORA, "teacher_model_kind": "ema"},
    "sampled token": {**GROUPS, "distillation_mode": "sampled_token", "distillation_alpha": 1.0},
    "adaptive entropy": {**GROUPS, "use_adaptive_entropy": True, "entropy_coef": 0.01},
    "a step of two generation batches": {
        "reward_funcs": length_reward, "gradient_accumulation_steps": 4, "steps_per_generation": 2,
    },
    "an epoch ends within a step": {"gradient_accumulation_steps": 3, "steps_per_generation": 2, "max_steps": 6},
    "epochs": {**GROUPS, "max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch"},
    "two workers": {**GROUPS, "dataloader_num_workers": 2},
    "bfloat16": {**GROUPS, "bf16": True, "use_cpu": True},
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_resumed_equals_uninterrupted(make_trainer, rows, tmp_path, name):
    """Interrupted at two places, each time just before a step of which the checkpoint knows nothing."""
    options = {"max_steps": 9, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3, **RUNS[name]}
    if "eval_strategy" in options:
        options["eval_dataset"] = Dataset.from_list(rows[:4])
    whole = make_trainer(**options, output_dir=str(tmp_path / "whole"))
    whole.train()
    last = whole.state.global_step
    interrupted(make_trainer, last // 2 + 1, **options)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(callbacks=[Leaves(last - 1)], **options).train(resume_from_checkpoint=True)
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)
    kill_worker.same(whole.optimizer.state_dict(), resumed.optimizer.state_dict(), "optimizer")
    kill_worker.same(whole.teacher.weights.parts, resumed.teacher.weights.parts, "teacher")


def test_a_finished_run_takes_no_further_step(make_trainer):
    """Its last checkpoint lies in the middle of an epoch, where transformers would go on."""
    one = make_trainer(max_steps=3, **{**BUFFERED, "steps_per_generation": 1})
    one.train()
    other = make_trainer(max_steps=3, **{**BUFFERED, "steps_per_generation": 1})
    other.train(resume_from_checkpoint=True)
    assert other.state.global_step == 3
    assert_same_run(one, other)


def test_a_kill_while_older_checkpoints_are_removed(make_trainer, tmp_path):
    """After the last checkpoint no other one comes, which would tidy up."""
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    make_trainer(**options).train()
    out = tmp_path / "out"
    (out / "checkpoint-1").rename(out / ".checkpoint-1.part")
    make_trainer(**options, save_total_limit=1).train(resume_from_checkpoint=True)
    assert [path.name for path in out.glob("*checkpoint*")] == ["checkpoint-3"]


def test_an_older_checkpoint_by_name_removes_none(make_trainer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 3}
    make_trainer(max_steps=3, **options).train()
    trainer = make_trainer(max_steps=3, **{**options, "save_strategy": "no", "save_total_limit": 1})
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 3


@pytest.mark.parametrize("step", [1, 4, 5])
def test_columns_of_any_kind(make_trainer, rows, tmp_path, step):
    """What a reward function logs goes through the checkpoint, whatever its type, without code in the file."""

    def reward(completions, log_extra, log_metric, **kwargs):
        log_extra("exact", [np.float64(0.5)] * len(completions))
        log_extra("when", [datetime.now()] * len(completions))
        log_metric("seen", np.float32(2.0))
        return length_reward(completions)

    options = {
        **BUFFERED, "reward_funcs": reward, "log_completions": True, "num_completions_to_print": 0,
        "eval_strategy": "steps", "eval_steps": 2, "eval_dataset": Dataset.from_list(rows[:4]),
    }  # fmt: skip
    interrupted(make_trainer, step, max_steps=6, **options)
    torch.load(tmp_path / "out" / f"checkpoint-{step}" / "run_state_0.pt", weights_only=True)
    trainer = make_trainer(max_steps=6, **options)
    trainer.train(resume_from_checkpoint=True)
    assert all(log["seen"] == 2.0 for log in trainer.state.log_history if "seen" in log)
    assert [log["step"] for log in trainer.state.log_history if "seen" in log] == [3, 6]


def test_other_settings_are_said_and_the_rest_is_sampled_anew(make_trainer, tmp_path, caplog):
    interrupted(make_trainer, 2, max_steps=6, **BUFFERED)
    teacher = load_file(tmp_path / "out" / "checkpoint-2" / "teacher.safetensors")
    seen = {}

    class Begin(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.update({name: tensor.clone() for name, tensor in trainer.teacher.weights.parts.items()})

    trainer = make_trainer(max_steps=6, callbacks=[Begin()], **{**BUFFERED, "num_iterations": 1})
    trainer.train(resume_from_checkpoint=True)
    assert any("num_iterations was 2, is 1" in text and "sampled anew" in text for text in warnings(caplog))
    assert trainer.state.global_step == 6
    assert seen and all(torch.equal(teacher[name], tensor) for name, tensor in seen.items())


def test_only_weights_are_saved(make_trainer, tmp_path):
    make_trainer(max_steps=1, save_strategy="steps", save_steps=1, save_only_model=True).train()
    assert not (tmp_path / "out" / "checkpoint-1" / "run_state_0.pt").exists()


def test_plain_grpo_resumes_as_grpo_trainer_does(make_trainer, tmp_path):
    """From the same checkpoint, of a run that samples for two steps at once."""
    options = {
        "reward_funcs": length_reward, "steps_per_generation": 2, "save_strategy": "steps", "save_steps": 1,
        "config": GRPOConfig, "max_steps": 4, "save_total_limit": 3,
    }  # fmt: skip
    runs = []
    for cls in (GRPOTrainer, kill_worker.OPSDTrainer):
        interrupted(make_trainer, 3, trainer_class=cls, **options)
        assert sorted(os.listdir(tmp_path / "out" / "checkpoint-3")) == sorted(
            os.listdir(tmp_path / "out" / "checkpoint-1")
        )
        assert not list((tmp_path / "out").rglob("run_state*"))
        trainer = make_trainer(trainer_class=cls, **options)
        trainer.train(resume_from_checkpoint=True)
        runs.append(trainer)
        shutil.rmtree(tmp_path / "out")
    assert_same_run(*runs)


def test_warnings_are_given_once_over_restarts():
    log = {"self_distillation/view_share": 0.0, "self_distillation/divergence": 0.0}
    one, other = SignalMonitor(), SignalMonitor()
    assert len([text for step in range(5) for text in one.observe(log, step)]) == 2
    other.recall([*({**log, "step": step} for step in range(3)), {"eval_loss": 1.0, "step": 3}])
    assert [text for step in range(3, 5) for text in other.observe(log, step)] == []
    assert (one.history, one.said) == (other.history, other.said)


def test_the_summary_is_of_the_whole_run(make_trainer):
    whole = make_trainer(max_steps=6, **BUFFERED)
    whole.train()
    interrupted(make_trainer, 5, max_steps=6, **BUFFERED)
    trainer = make_trainer(max_steps=6, **BUFFERED)
    begin = time.time()
    trainer.train(resume_from_checkpoint=True)
    assert history(trainer)[-1] == history(whole)[-1]
    assert trainer.state.log_history[-1]["train_runtime"] > time.time() - begin


def test_which_checkpoint_without_resuming(make_trainer, tmp_path):
    accelerator = make_trainer().accelerator
    assert to_resume(None, tmp_path, accelerator) is to_resume(False, tmp_path, accelerator) is None
