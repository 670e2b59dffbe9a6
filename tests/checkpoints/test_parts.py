# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Every part of a trainer that changes in training is restored, also within a generation buffer."""

import pytest
import torch

from scripted import right, sums, writing
from trl_opsd import OPSDTrainer
from trl_opsd.checkpoints.parts import load_parts, save_parts
from trl_opsd.privileged import Skills
from written_worker import SUMMARY


# A generation batch lasts for four steps, so that each checkpoint but one is within it
BUFFERED = {
    "gradient_accumulation_steps": 1, "steps_per_generation": 2, "num_iterations": 2, "per_device_train_batch_size": 2,
    "save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "reward_funcs": right, "num_generations": 2,
    "policy_weight": 0.0, "max_completion_length": 40, "method": "taid", "teacher_model_kind": "ema",
    "teacher_update_rate": 0.5, "distillation_alpha": 0.5,
}  # fmt: skip
# What is of the latest generation batch or step and set anew with the next, and the number of the teacher's updates:
# teacher outputs are kept until it changes, and a checkpoint has none
EXEMPT = (
    "collected", "_sampled", "method.step", "method.progress", "collector.asker.skipped", "collector.asker.raised",
    "privileged.counts", "teacher.num_updates", "token_log.known",
)  # fmt: skip


def leaves(value, path, seen):
    """Every number, text and tensor that an object of this project holds, by its path."""
    if type(value).__module__.startswith(("trl_opsd", "test_parts")) and hasattr(value, "__dict__"):
        if id(value) in seen:
            return
        seen.add(id(value))
        value = vars(value)
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{path}.{name}", seen)
    elif isinstance(value, (list, tuple)):
        yield f"{path}.len", len(value)
        for i, item in enumerate(value):
            yield from leaves(item, f"{path}.{i}", seen)
    elif isinstance(value, torch.Tensor):
        yield path, value.tolist()
    elif isinstance(value, (str, int, float, type(None))):
        yield path, value


def held(trainer: OPSDTrainer) -> dict:
    found, seen = {}, {id(trainer), id(trainer.args)}
    for name, part in vars(trainer).items():
        if type(part).__module__.startswith(("trl_opsd", "test_parts")):
            found.update(leaves(part, name, seen))
    return {path: value for path, value in found.items() if not path.startswith(EXEMPT)}


def summaries(prompts, rollouts):
    return [SUMMARY.format(rollout.text) for rollout in rollouts]


class Counting:
    """A part that counts and forgets it at a restart."""

    def __init__(self):
        self.steps = 0


def make(make_trainer, folder, steps, counting=False):
    trainer = make_trainer(
        output_dir=str(folder), max_steps=steps, dataset=sums(), privileged=Skills(author=summaries, k=2, size=3),
        rollout_func=writing(["It is 3", "It is 2"], ["It is 5", "2 + 3 = 5"]), **BUFFERED,
    )  # fmt: skip
    if counting:
        trainer.counting = Counting()
    return trainer


@pytest.mark.parametrize("steps", [2, 6])
@pytest.mark.parametrize("counting", [False, True])
def test_what_training_changes_is_restored(make_trainer, tmp_path, steps, counting):
    whole = make(make_trainer, tmp_path / "whole", steps, counting)
    before = held(whole)
    whole.train()
    if counting:
        whole.counting.steps += 1
    after = held(whole)
    changed = {path for path in after if after[path] != before.get(path)}
    assert {path.split(".")[0] for path in changed} >= {"teacher", "method", "monitor", "privileged"}
    resumed = make(make_trainer, tmp_path / "resumed", steps, counting)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{steps}"))
    restored = held(resumed)
    lost = sorted(path for path in changed if restored.get(path) != after[path])
    assert lost == (["counting.steps"] if counting else []), "add the part to OPSDTrainer.parts"


class Counted:
    def __init__(self, count):
        self.count = count

    def state(self):
        return {"count": self.count}

    def restore(self, state):
        self.count = state["count"]


def test_a_process_that_the_run_did_not_have_takes_the_state_of_the_first(tmp_path):
    for rank in (0, 1):
        save_parts({"counted": Counted(10 + rank)}, tmp_path, rank)
    restored = [Counted(0) for _ in range(3)]
    for rank, part in enumerate(restored):
        load_parts({"counted": part}, tmp_path, rank)
    assert [part.count for part in restored] == [10, 11, 10]
