# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A resumed run is the uninterrupted one, to the last bit."""

import json
import logging
import os
import random
import shutil
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import kill_worker
from conftest import length_reward
from launch import outcome
from runs import BUFFERED, LORA_WITH_DROPOUT, Leaves, assert_same_run, history, interrupted
from trl_opsd.monitoring.alerts import SignalMonitor
from trl_opsd.teacher.weights import CopiedWeights


KILL_WORKER = Path(kill_worker.__file__)
# A generation batch lasts for four steps


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("trl_opsd") and r.levelno == logging.WARNING]


# Killed runs


@pytest.mark.engines
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("data", "kills"), [("map", 20), ("stream", 2)])
def test_killed_at_random_points(tmp_path, data, kills):
    """Weights, optimizer, teacher, random state, logs, completion tables and every micro-batch, to the last bit."""
    seed = random.randrange(10**6)
    code, output = outcome(KILL_WORKER, str(tmp_path), str(kills), str(seed), data, processes=1, seconds=380)
    assert code == 0, f"seed {seed}: {output[-3000:]}"
    result = json.loads(output.splitlines()[-1])
    assert result["kills"] == kills, f"seed {seed}: {result}"
    assert result["half_written"] >= kills // 7, f"seed {seed}: {result}"


# What is restored


GROUPS = {"reward_funcs": length_reward, "steps_per_generation": 2, "num_iterations": 2}
RUNS: dict[str, dict] = {
    "pure, frozen": {"steps_per_generation": 3},
    "live": {**GROUPS, "teacher_model_kind": "live"},
    "snapshot": {**GROUPS, "teacher_model_kind": "snapshot", "teacher_sync_steps": 2},
    "LoRA, frozen": {**GROUPS, "peft_config": LORA_WITH_DROPOUT},
    "LoRA, ema": {**GROUPS, "peft_config": LORA_WITH_DROPOUT, "teacher_model_kind": "ema"},
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


def copies(trainer):
    """The teacher's, where it has any."""
    return trainer.teacher.weights.copies if isinstance(trainer.teacher.weights, CopiedWeights) else {}


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
    kill_worker.same(copies(whole), copies(resumed), "teacher")


@pytest.mark.parametrize("evaluates", [False, True], ids=["trained last", "evaluated last"])
def test_a_finished_run_takes_no_further_step(make_trainer, rows, evaluates):
    """Its last checkpoint lies in the middle of an epoch, where transformers would go on. What it logs at its end
    depends on what came last."""
    options = {**BUFFERED, "steps_per_generation": 1, "logging_steps": 2}
    if evaluates:
        options |= {"eval_strategy": "steps", "eval_steps": 3, "eval_dataset": Dataset.from_list(rows[:4])}
    one = make_trainer(max_steps=3, **options)
    one.train()
    random = torch.get_rng_state()
    other = make_trainer(max_steps=3, **options)
    other.train(resume_from_checkpoint=True)
    assert other.state.global_step == 3
    logs = [kill_worker.untimed(trainer.state.log_history) for trainer in (one, other)]
    assert logs[0] == logs[1] and ("self_distillation/loss" in logs[0][-1]) != evaluates
    assert torch.equal(torch.get_rng_state(), random)
    assert_same_run(one, other)


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
    torch.load(tmp_path / "out" / f"checkpoint-{step}" / "_run_state_0.pt", weights_only=True)
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
            seen.update({name: tensor.clone() for name, tensor in trainer.teacher.weights.copies.items()})

    trainer = make_trainer(max_steps=6, callbacks=[Begin()], **{**BUFFERED, "num_iterations": 1})
    trainer.train(resume_from_checkpoint=True)
    assert any("num_iterations was 2, is 1" in text and "sampled anew" in text for text in warnings(caplog))
    assert trainer.state.global_step == 6
    assert seen and all(torch.equal(teacher[name], tensor) for name, tensor in seen.items())


def test_only_weights_are_saved(make_trainer, tmp_path):
    make_trainer(max_steps=1, save_strategy="steps", save_steps=1, save_only_model=True).train()
    assert not (tmp_path / "out" / "checkpoint-1" / "_run_state_0.pt").exists()


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
        assert not list((tmp_path / "out").rglob("*run_state*"))
        trainer = make_trainer(trainer_class=cls, **options)
        trainer.train(resume_from_checkpoint=True)
        runs.append(trainer)
        shutil.rmtree(tmp_path / "out")
    assert_same_run(*runs)


def test_warnings_are_given_once_over_restarts():
    PartialState()  # warnings go through accelerate
    log = {"self_distillation/view_share": 0.0, "self_distillation/divergence": 0.0}
    one, other = SignalMonitor(), SignalMonitor()
    assert len([text for step in range(5) for text in one.observe(log, step)]) == 2
    other.observe(log, 0)  # it forgets what it saw before the checkpoint was loaded
    other.recall([*({**log, "step": step} for step in range(3)), {"eval_loss": 1.0, "step": 3}])
    assert [text for step in range(3, 5) for text in other.observe(log, step)] == []
    assert (one.windows, one.said) == (other.windows, other.said)


def test_the_summary_is_of_the_whole_run(make_trainer):
    whole = make_trainer(max_steps=6, **BUFFERED)
    whole.train()
    interrupted(make_trainer, 5, max_steps=6, **BUFFERED)
    trainer = make_trainer(max_steps=6, **BUFFERED)
    begin = time.time()
    trainer.train(resume_from_checkpoint=True)
    assert history(trainer)[-1] == history(whole)[-1]
    assert trainer.state.log_history[-1]["train_runtime"] > time.time() - begin
