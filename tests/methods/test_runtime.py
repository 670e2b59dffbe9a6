# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The state of a method's schedule: what it follows, in checkpoints and between them."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerState

from conftest import length_reward
from method_cases import WITHOUT_TURNS, C, signals
from trl_opsd.methods import Method, method_of
from trl_opsd.methods.runtime import MethodRun


SCHEDULES = [name for name in WITHOUT_TURNS if method_of(name).update_state is not None]
# A generation batch lasts for four steps
BUFFERED = {
    "reward_funcs": length_reward, "gradient_accumulation_steps": 1, "steps_per_generation": 2, "num_iterations": 2,
    "save_strategy": "steps", "save_steps": 1, "max_steps": 6,
}  # fmt: skip


def trained(make_trainer, folder, checkpoint=None, **options):
    trainer = make_trainer(output_dir=str(folder), **{**BUFFERED, **options})
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_resumed_within_a_generation_batch(make_trainer, tmp_path, name):
    """Everything that a schedule follows is in the checkpoint, also the rollouts that later steps look at."""
    whole = trained(make_trainer, tmp_path / "whole", method=name)
    assert whole.method.schedule_state != method_of(name).state
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    saved = json.loads((checkpoint / "_parts_0.json").read_text())["method"]
    assert len(saved["rollouts"]) == 8 and saved["losses"] == [] and saved["logged"] == {}
    again = trained(make_trainer, tmp_path / "again", checkpoint, method=name)
    assert json.dumps(again.method.state()) == json.dumps(whole.method.state())


def test_a_checkpoint_without_the_state_is_said(make_trainer, tmp_path, caplog):
    """As one of version 0.1: the schedule begins anew, with the next generation batch."""
    trained(make_trainer, tmp_path / "whole", method="taid")
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    (checkpoint / "_parts_0.json").unlink()
    rests = trained(make_trainer, tmp_path / "again", checkpoint, method="taid", max_steps=4)
    assert rests.method.schedule_state == method_of("taid").state
    assert "holds no state of the part 'method', which starts anew" in caplog.text
    goes_on = trained(make_trainer, tmp_path / "further", checkpoint, method="taid")
    assert goes_on.method.schedule_state != method_of("taid").state


COUNTS = Method("C", state={"n": 0.0}, update_state=lambda summary: {"n": 1.0})

KEEPS = Method("K", state={"n": 0.0}, update_state=dataclasses.asdict)


def test_a_snapshot_is_a_copy():
    run = MethodRun("test_runtime.COUNTS", None)
    run.record_loss(torch.ones(1, 2, 3), torch.ones(1, 2, 3))
    run.record_metrics({"self_distillation/loss": (1.0, 4.0)})
    before, kept = run.state(), json.dumps(run.state())
    assert before == {"state": {"n": 0.0}, "losses": [[6.0, 6.0]], "rollouts": [], "logged": {"loss": [1.0, 4.0]}}
    run.record_loss(torch.ones(1, 2, 3), torch.ones(1, 2, 3))
    run.record_metrics({"self_distillation/loss": (2.0, 1.0)})
    run.schedule_state["n"] = 5.0
    assert json.dumps(before) == kept
    for _ in range(2):
        run.restore(before)
        assert json.dumps(run.state()) == kept
        run.losses.append([0.0, 0.0])
        run.logged["loss"][0] = 3.0
        run.schedule_state["n"] = 7.0


def test_a_loss_that_is_not_distilled_does_not_count():
    run = MethodRun("test_runtime.COUNTS", None)
    run.record_loss(torch.tensor([[[2.0, torch.inf]]]), torch.tensor([[[0.5, 0.0]]]))
    assert run.losses == [[1.0, 0.5]]


def test_statistics_of_a_step():
    """Means over tokens and rollouts, whatever their micro-batch; a rollout without a reward has none."""
    run = MethodRun("test_runtime.KEEPS", None)
    given = [(0.5, 10, False), (math.nan, 20, True), (1.5, 30, False), (1.0, 110, True)]
    run.record_rollouts([SimpleNamespace(total=a, completion_ids=[0] * b, truncated=c) for a, b, c in given])
    for loss, tokens in ((2.0, 3), (4.0, 1)):
        run.record_loss(torch.full((1, 1, tokens), loss), torch.ones(1, 1, tokens))
        run.record_metrics({"self_distillation/gap/mean": (loss * tokens, tokens), "entropy": (tokens, tokens)})
    run.on_step_end(None, TrainerState(global_step=5, max_steps=20), None)
    kept = run.schedule_state
    assert (kept["step"], kept["progress"], kept["loss"], kept["reward"]) == (5, 0.25, 10 / 4, 1.0)
    assert (kept["truncated"], kept["mean_length"]) == (0.5, 42.5)
    assert kept["tail_length"] == pytest.approx(30 + 0.85 * 80), "between the third and the last, at 0.95 * 3"
    assert kept["logged"] == {"gap/mean": 2.5, "entropy": 1.0} and kept["state"] == {"n": 0.0}
    assert (run.losses, run.logged, len(run.rollouts)) == ([], {}, 4), "later steps of the batch have its rollouts"


def test_without_a_schedule_nothing_is_kept(make_trainer, tmp_path):
    trainer = trained(make_trainer, tmp_path / "out", method="opsd", max_steps=1)
    assert trainer.method.state() == {}
    assert json.loads((tmp_path / "out" / "checkpoint-1" / "_parts_0.json").read_text())["method"] == {}


def test_a_run_without_a_method():
    """Advantages are the verifier's plus the gap, and no view is required."""
    run, batch = MethodRun(None, None), signals("gates", ["a", "b"], scale=torch.tensor(3.0, dtype=torch.float64))
    gap = (batch.teacher_logps - batch.student_logps).mean(0) * batch.mask
    torch.testing.assert_close(run.advantages(batch), batch.advantages.expand(-1, C) + 3.0 * gap)
    assert run.required == () and MethodRun("rlcsd", None).required == ("right", "wrong")
    assert run.hidden_state_loss(["a"]) is None and run.should_sync_teacher()
