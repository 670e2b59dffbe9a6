# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A half-written checkpoint is never taken for a whole one, and the whole one before it stays."""

import logging
import os
import resource
import time

import pytest
import torch
from datasets import Dataset
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer

from conftest import length_reward
from trl_opsd.checkpoints.folders import MARKER, is_complete, last_complete, rotate, to_resume, writing


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("trl_opsd") and r.levelno == logging.WARNING]


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
    assert any("it holds no _run_state_0.pt" in text for text in warnings(caplog))
    assert trainer._step == trainer.state.global_step == 4


# Writing and removing


@pytest.fixture
def accelerator(make_trainer):
    return make_trainer().accelerator


def test_the_marker_is_there_while_anything_else_is(tmp_path, accelerator):
    folder = tmp_path / "out" / "checkpoint-5"
    with writing(folder, accelerator, True):
        assert (folder / MARKER).exists() and not is_complete(folder)
        (folder / "trainer_state.json").touch()
        assert not is_complete(folder)
    assert is_complete(folder) and not (folder / MARKER).exists()


def test_a_disk_that_takes_no_byte(tmp_path, accelerator):
    """Not even the marker: then there is no checkpoint of that name either."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError) as caught, writing(tmp_path / "checkpoint-5", accelerator, True):
            pytest.fail("nothing should be written without a marker")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert "checkpoint-5 was written (process 0)" in caught.value.__notes__[0]
    assert not (tmp_path / "checkpoint-5").exists()


def test_a_machine_on_which_nothing_is_written(tmp_path, accelerator):
    """With `save_only_model` and without a shared disk, on every machine but the first."""
    folder = tmp_path / "out" / "checkpoint-5"
    with writing(folder, accelerator, writes=False):
        pass
    assert not folder.exists()


@pytest.mark.parametrize("plain", [False, True])
def test_save_only_model_on_a_disk_of_its_own(make_trainer, tmp_path, plain):
    """The second machine's part of the checkpoint: the parts' states, and nothing in a run that does not distil."""
    rewards = {"reward_funcs": length_reward, "distillation_weight": 0.0} if plain else {}
    trainer = make_trainer(save_strategy="steps", save_steps=1, save_only_model=True, max_steps=2, **rewards)

    class Second(type(trainer.args)):  # which no main process is, so that it writes for nobody else
        should_save = False
        process_index = 1

    trainer.args.__class__ = Second
    out = tmp_path / "out"
    out.rmdir()  # transformers makes it on the first machine alone
    trainer.train()
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert written == ([] if plain else [f"checkpoint-{step}/_parts_1.json" for step in (1, 2)])


def test_a_checkpoint_from_elsewhere_that_pickle_reads(tmp_path, accelerator, caplog):
    own, other = tmp_path / "out", tmp_path / "downloads" / "checkpoint-3"
    for folder in (own / "checkpoint-3", other):
        (folder / "teacher").mkdir(parents=True)
        (folder / "global_step3").mkdir()
        for name in ("trainer_state.json", "optimizer.pt", "teacher/.metadata", "global_step3/states.pt"):
            (folder / name).touch()
    assert to_resume(str(own / "checkpoint-3"), own, accelerator) and not warnings(caplog)
    assert to_resume(str(other), own, accelerator) == str(other)
    (said,) = warnings(caplog)
    assert "global_step3/states.pt, teacher/.metadata" in said and "Go on only with a checkpoint that you trust" in said
    for name in ("teacher/.metadata", "global_step3/states.pt"):
        (other / name).unlink()
    caplog.clear()
    assert to_resume(str(other), own, accelerator) and not warnings(caplog), "nothing of it runs code"


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path, accelerator):
    run = tmp_path / "run"
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6", ".checkpoint-1.part"):
        (run / name).mkdir(parents=True)
        (run / name / "old").touch()
    (run / "checkpoint-4" / MARKER).touch()
    with writing(run / "checkpoint-6", accelerator, True):
        pass
    assert sorted(os.listdir(run)) == ["checkpoint-2", "checkpoint-6"]
    assert not os.listdir(run / "checkpoint-6") and os.listdir(run / "checkpoint-2")


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


def test_a_half_written_checkpoint_takes_no_place_of_a_whole_one(tmp_path):
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-4" / MARKER).touch()
    rotate(tmp_path / "checkpoint-6", 2, None)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


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
        assert {"teacher.safetensors", "_run_state_0.pt", "optimizer.pt"} <= set(files) and MARKER not in files


def test_the_best_checkpoint_stays(make_trainer, rows, tmp_path):
    trainer = make_trainer(
        max_steps=4, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, save_total_limit=1,
        metric_for_best_model="eval_num_tokens", greater_is_better=False, load_best_model_at_end=True,
        eval_dataset=Dataset.from_list(rows[:4]),
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "out" / "checkpoint-1")
    assert (tmp_path / "out" / "checkpoint-1" / "model.safetensors").exists()


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


def test_which_checkpoint_without_resuming(tmp_path, accelerator):
    assert to_resume(None, tmp_path, accelerator) is to_resume(False, tmp_path, accelerator) is None
