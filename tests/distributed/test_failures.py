# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What fails in the middle of a run names its place, ends every process within seconds, and leaves the last checkpoint
intact."""

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

import failing_worker
import kill_worker
from conftest import length_reward
from launch import launch
from runs import assert_same_run
from trl_opsd import DatasetColumn, View
from trl_opsd.checkpoints.folders import last_complete
from trl_opsd.privileged import rollouts_of


WORKER = Path(failing_worker.__file__)
LIMIT_SECONDS = 300
QUICK_SECONDS = 5  # from the failure of one to the error of both; on a full disk the other one's exit comes first
OPTIONS = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "teacher_model_kind": "ema"}


# One process


def fails_in_the_second_step(trainer, error, *named):
    """The error, the place in its notes, and the checkpoint to go on from, which then is gone on from."""
    with pytest.raises(error) as caught:
        trainer.train()
    notes = " ".join(caught.value.__notes__)
    for name in (
        *named,
        "Training stopped after step 1",
        "checkpoint-1: go on",
        "`train(resume_from_checkpoint=True)`",
    ):
        assert name in notes, notes
    return caught.value


def resumed_equals_uninterrupted(make_trainer, **options):
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(**{**options, "save_strategy": "no"})
    whole.train()
    assert_same_run(whole, resumed)


def second(function, failing):
    """`failing` at the second call."""
    calls = []

    def called(*args, **kwargs):
        calls.append(None)
        return failing(*args, **kwargs) if len(calls) == 2 else function(*args, **kwargs)

    called.__name__ = "judge"
    return called


def raising(*args, **kwargs):
    raise OSError("the judge does not answer")


JUDGE = second(length_reward, length_reward)


class Async:
    """An async reward function that fails the second time, as an object."""

    __name__ = "judge"

    def __init__(self):
        self.calls = 0

    async def __call__(self, completions, **kwargs):
        self.calls += 1
        return raising() if self.calls == 2 else length_reward(completions)


@pytest.mark.parametrize(
    ("reward", "error"),
    [
        (lambda: second(length_reward, raising), OSError),
        (lambda: second(length_reward, lambda completions, **_: [1.0]), ValueError),
        (lambda: second(length_reward, lambda completions, **_: ["good"] * len(completions)), Exception),
        (lambda: [length_reward, second(length_reward, raising)], OSError),
        (lambda: [Async(), length_reward], OSError),
    ],
    ids=["raises", "too few", "texts", "the second of two", "async"],
)
def test_reward_function(make_trainer, reward, error):
    trainer = make_trainer(reward_funcs=reward(), **OPTIONS)
    fails_in_the_second_step(trainer, error, "From the reward function 'judge' on process 0, step 1.")
    healthy = [length_reward if name == "length_reward" else JUDGE for name in trainer.reward_func_names]
    resumed_equals_uninterrupted(make_trainer, reward_funcs=healthy, **OPTIONS)


COLUMN = DatasetColumn("privileged_context")
LONG = [{"role": "user", "content": "very " * 200}]
RUBBISH = {
    "raises": (raising, OSError, "the judge does not answer"),
    "too few": (lambda groups: COLUMN(groups)[1:], ValueError, "got 3 lists"),
    "nothing": (lambda groups: None, ValueError, "got NoneType"),
    "texts": (lambda groups: [["The answer is 1."] for _ in rollouts_of(groups)], ValueError, "list of `View`"),
    "views without lists": (lambda groups: [View() for _ in rollouts_of(groups)], ValueError, "list of `View`"),
    "text for chat": (
        lambda groups: [[View(prompt="x")] for _ in rollouts_of(groups)],
        ValueError,
        "the row with prompt",
    ),
    "negative": (lambda groups: [[View(weight=-1.0)] for _ in rollouts_of(groups)], ValueError, "weight -1.0"),
}


@pytest.mark.parametrize(("source", "error", "text"), RUBBISH.values(), ids=RUBBISH)
def test_privileged_source(make_trainer, source, error, text):
    trainer = make_trainer(privileged=second(COLUMN, source), **OPTIONS)
    caught = fails_in_the_second_step(trainer, error, "From the privileged source on process 0, step 1.")
    assert text in str(caught)
    resumed_equals_uninterrupted(make_trainer, **OPTIONS)


def test_a_view_that_does_not_fit(make_trainer):
    overlong = second(COLUMN, lambda groups: [[View(prompt=LONG)] for _ in rollouts_of(groups)])
    trainer = make_trainer(privileged=overlong, **OPTIONS)
    caught = fails_in_the_second_step(trainer, ValueError, "From the teacher's prompts on process 0, step 1.")
    assert "`teacher_overlong='drop_view'`" in str(caught)
    resumed_equals_uninterrupted(make_trainer, **OPTIONS)


class FullDisk(TrainerCallback):
    """From the second checkpoint on, the system takes no file beyond a size."""

    def __init__(self, size):
        self.size = size

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [80_000, 130_000], ids=["weights", "optimizer"])
def test_full_disk(make_trainer, tmp_path, size):
    """The weights are a file of 110 kB, the optimizer's state one of 240."""
    trainer = make_trainer(callbacks=[FullDisk(size)], **OPTIONS)
    try:
        with pytest.raises(Exception) as caught:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    notes = " ".join(caught.value.__notes__)
    out = tmp_path / "out"
    assert f"While the checkpoint {out / 'checkpoint-2'} was written (process 0)" in notes, notes
    assert f"Training stopped after step 2. The last complete checkpoint is {out / 'checkpoint-1'}" in notes, notes
    assert last_complete(out) == out / "checkpoint-1"
    resumed_equals_uninterrupted(make_trainer, **OPTIONS)


def test_no_note_where_nothing_was_trained(make_trainer):
    trainer = make_trainer(privileged=raising)
    with pytest.raises(OSError) as caught:
        trainer.train()
    assert caught.value.__notes__[-1:] == ["From the privileged source on process 0, step 0."]


# Two processes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the runs of two processes, and the ranks of each that did not come to an end."""
    folder = tmp_path_factory.mktemp("two")
    launch(WORKER, str(folder), processes=1, seconds=LIMIT_SECONDS)
    return folder, json.loads((folder / "hung.json").read_text())


# The rank that fails, its error, its place, and its text
EVERYWHERE = {
    "reward": ([1], "OSError", "the reward function 'reward' on process 1, step 4", "the judge does not answer"),
    "reward of both": ([0, 1], "OSError", "the reward function 'reward' on process ", "the judge does not answer"),
    "source": ([1], "KeyError", "the privileged source on process 1, step 4", "no such solution"),
    "overlong": ([0], "ValueError", "the teacher's prompts on process 0, step 4", "`teacher_overlong='drop_view'`"),
    "written": ([1], "IsADirectoryError", "the record of the contexts on process 1, step 4", "train-000004-1.jsonl"),
}


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize("kind", EVERYWHERE)
def test_one_process_fails_and_all_say_so(runs, kind):
    folder, hung = runs
    failing, error, place, text = EVERYWHERE[kind]
    assert hung[kind] == []
    for rank in range(2):
        said = json.loads((folder / kind / f"error-{rank}.json").read_text())
        assert said["kind"] == (error if rank in failing else "RuntimeError"), said["text"]
        assert said["seconds"] < QUICK_SECONDS
        for name in (place, text, "The last complete checkpoint is", "checkpoint-3"):
            assert name in said["text"], said["text"]
    assert last_complete(folder / kind) == folder / kind / "checkpoint-3"


def test_full_disk_of_one_process(runs):
    """The run then goes on from the checkpoint before it, to the end of the uninterrupted one."""
    folder, hung = runs
    assert hung["disk"] == hung["disk, resumed"] == []
    said = json.loads((folder / "disk" / "error-0.json").read_text())["text"]
    assert json.loads((folder / "disk" / "error-1.json").read_text())["seconds"] < 3 * QUICK_SECONDS
    for name in ("checkpoint-6 was written (process 0)", "half-written", "complete checkpoint is", "checkpoint-3"):
        assert name in said, said
    for rank in range(2):
        for name in ("disk", "whole"):
            shutil.copy(folder / name / f"left-{rank}.pt", folder / name / "left.pt")
        kill_worker.compare(folder / "disk", folder / "whole", rank)


def test_two_processes_go_on_as_one(tmp_path, runs, caplog):
    """The teacher is the checkpoint's; what each process held of its own is not taken for another's."""
    whole = runs[0] / "whole"
    shutil.copytree(whole / "checkpoint-11", tmp_path / "run" / "checkpoint-11")
    trainer = kill_worker.build(tmp_path / "run", per_device_train_batch_size=4, max_steps=12)
    trainer.train(resume_from_checkpoint=True)
    assert any("world_size was 2, is 1" in record.getMessage() for record in caplog.records)
    assert trainer.state.global_step == 12
    left = torch.load(whole / "left-0.pt")["teacher"]
    student = dict(trainer.model.named_parameters())
    for name, tensor in trainer.teacher.weights.copies.items():  # one further step of the average
        torch.testing.assert_close(tensor, left[name].lerp(student[name].detach(), 0.1))
