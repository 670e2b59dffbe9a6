# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The accelerate configs as they stand, started with `accelerate launch`; only the number of processes is another one.

Two gloo processes on the CPU: the same samples, losses and gradient norms under every engine, and on two "nodes".
"""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import tiny
from processes import end_launcher_with_parent, free_port


ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 150
RECIPE = {
    "teacher_model_kind": "ema",
    "teacher_update_rate": 0.1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_generations": 1,
    "max_completion_length": 8,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "bf16": "false",
    "logging_steps": 1,
    "save_steps": 2,
    "report_to": "none",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> list[str]:
    """Options of a run on a tiny model, with real sampling."""
    folder = tmp_path_factory.mktemp("prepared")
    tiny.tokenizer().save_pretrained(folder / "model")
    tiny.model(tiny.tokenizer()).save_pretrained(folder / "model")
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {i}?"}], "privileged_context": f"It is {i}."}
        for i in range(32)
    ]
    (folder / "data").mkdir()
    Dataset.from_list(rows).to_json(folder / "data" / "train.json")
    options = {"model_name_or_path": folder / "model", "dataset_name": folder / "data", **RECIPE}
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def start(config: str, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{config}.yaml"), "--mixed_precision", "no"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, *options], cwd=ROOT, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=end_launcher_with_parent,
    )  # fmt: skip


def finish(processes: list[subprocess.Popen]) -> None:
    """Wait for all; the first that fails ends the others, which would wait for it, and is shown."""
    with ThreadPoolExecutor() as pool:
        outputs = {pool.submit(process.communicate, timeout=LIMIT_SECONDS): process for process in processes}
        for output in as_completed(outputs):
            process = outputs[output]
            late = output.exception() is not None
            if late or process.returncode != 0:
                for other in processes:
                    with suppress(ProcessLookupError):
                        os.killpg(other.pid, signal.SIGKILL)
                shown = process.communicate()[0] if late else output.result()[0]
                pytest.fail(f"{f'did not end in {LIMIT_SECONDS} s' if late else process.returncode}: {shown[-4000:]}")


def script(folder: Path, prepared: list[str]) -> list[str]:
    return ["tests/support/on_cpu.py", "scripts/opsd.py", *prepared, "--output_dir", str(folder)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, prepared):
    """The checkpoint that a config's two processes write after two steps."""

    @cache
    def launched(config: str) -> Path:
        folder = tmp_path_factory.mktemp(config)
        if config == "multi_node":  # of one process each
            options = ["--num_processes", "2", "--num_machines", "2", "--main_process_port", str(free_port())]
            nodes = [["--machine_rank", str(rank)] for rank in range(2)]
            finish([start(config, *options, *node, *script(folder, prepared)) for node in nodes])
        else:
            finish([start(config, "--num_processes", "2", *script(folder, prepared))])
        return folder / "checkpoint-2"

    return launched


def logged(checkpoint: Path) -> list[tuple]:
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [(log["loss"], log["grad_norm"], log["num_tokens"]) for log in history]


@pytest.mark.parametrize("config", ["zero1", "zero2", "zero3", "fsdp2", "multi_node"])
def test_a_config_runs_as_it_stands(run, config):
    if config not in ("fsdp2",):
        pytest.importorskip("deepspeed")
    checkpoint, reference = run(config), run("ddp")
    assert (checkpoint / "rng_state_1.pth").exists(), "a second process"
    assert len(logged(reference)) == 2
    for mine, expected in zip(logged(checkpoint), logged(reference), strict=True):
        assert mine == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("config", ["zero3", "fsdp2"])
def test_the_teachers_state_is_sharded(run, config):
    """Together the parts are the teacher that DDP saves whole."""
    if config == "zero3":
        pytest.importorskip("deepspeed")
    whole = load_file(run("ddp") / "teacher.safetensors")
    if config == "fsdp2":
        saved = fsdp2_teacher(run(config))
    else:
        parts = [load_file(run(config) / f"teacher-{rank:05d}-of-00002.safetensors") for rank in (1, 2)]
        flat = {name: torch.cat([part[name] for part in parts]) for name in whole}
        saved = {name: flat[name][: tensor.numel()].view_as(tensor) for name, tensor in whole.items()}
    assert saved.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-4, atol=1e-5)


def fsdp2_teacher(checkpoint: Path) -> dict[str, torch.Tensor]:
    dcp_to_torch_save(checkpoint / "teacher", checkpoint / "teacher.pt")
    return torch.load(checkpoint / "teacher.pt")


def test_deepspeed_names_the_number_of_processes(run, prepared, tmp_path):
    pytest.importorskip("deepspeed")
    options = [*script(tmp_path, prepared), "--max_steps", "3", "--resume_from_checkpoint", str(run("zero3"))]
    process = start("zero3", "--num_processes", "1", *options)
    output = process.communicate(timeout=LIMIT_SECONDS)[0]
    assert process.returncode != 0
    assert "was written by 2 processes under DeepSpeed, which can't go on with 1" in output


def test_fsdp2_goes_on_with_another_number_of_processes(run, prepared, tmp_path):
    """Two processes wrote the teacher, one reads it: after one more step it has moved from there to the student."""
    before = run("fsdp2")
    options = [*script(tmp_path, prepared), "--max_steps", "3", "--save_steps", "3"]
    finish([start("fsdp2", "--num_processes", "1", *options, "--resume_from_checkpoint", str(before))])
    after, student = fsdp2_teacher(tmp_path / "checkpoint-3"), load_file(tmp_path / "checkpoint-3/model.safetensors")
    for name, start_value in fsdp2_teacher(before).items():
        assert not torch.equal(after[name], start_value)
        torch.testing.assert_close(after[name], start_value.lerp(student[name], 0.1), rtol=1e-5, atol=1e-6)
