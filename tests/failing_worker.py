# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One process of the runs of tests/test_failures.py: something fails in the middle of training, on one rank alone."""

import asyncio
import json
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import conftest
import kill_worker
from trl_opsd import DatasetColumn, View


FROM_STEP = 4  # checkpoints are written at 3, 6, 9 and 11; generations begin at 0, 4 and 8


class Failing:
    """What fails, from one step on, on one rank, or nowhere."""

    def __init__(self, kind: str, rank: int, folder: Path):
        self.kind, self.rank, self.folder = kind, rank, folder
        self.due = False

    def trips(self, *kinds: str) -> bool:
        if not (self.due and self.kind in kinds):
            return False
        (self.folder / "failed-at").write_text(str(time.time()))
        return True

    def reward(self, completions: list, **kwargs: Any) -> list[float]:
        if self.trips("reward"):
            raise OSError("the judge does not answer")
        return conftest.length_reward(completions)[: -1 if self.trips("short reward") else None]

    async def async_reward(self, completions: list, **kwargs: Any) -> list[float]:
        await asyncio.sleep(0)
        return self.reward(completions)

    def source(self, rollouts: list) -> Any:
        if self.trips("source"):
            raise KeyError("no such solution")
        views = DatasetColumn("privileged_context")(rollouts)
        if self.trips("short source"):
            return views[:-1]
        if self.trips("texts"):
            return [["The answer is 1."] for _ in rollouts]
        if self.trips("overlong"):
            long = [{"role": "user", "content": "very " * 200}]
            return [[View(long)], *views[1:]]
        return views


class Clock(TrainerCallback):
    """Tells when the failure is due. A full disk is one that takes no file beyond a size."""

    def __init__(self, failing: Failing, rank: int):
        self.failing, self.here = failing, failing.rank == rank

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.failing.due = self.here and state.global_step >= FROM_STEP
        if self.failing.trips("disk: weights", "disk: optimizer"):
            size = 64 if self.failing.kind == "disk: weights" else 180
            resource.setrlimit(resource.RLIMIT_FSIZE, (size * 1024, resource.RLIM_INFINITY))


def main(folder: Path, kind: str, rank: int, resume: bool) -> None:
    torch.set_num_threads(1)
    failing = Failing(kind, rank, folder)
    reward = failing.async_reward if kind == "async reward" else failing.reward
    failing.kind = "reward" if kind == "async reward" else kind
    trainer = kill_worker.build(
        folder, reward=reward, privileged=failing.source, per_device_train_batch_size=2, save_total_limit=1
    )
    here = trainer.args.process_index
    trainer.add_callback(Clock(failing, here))
    try:
        trainer.train(resume_from_checkpoint=resume)
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        (folder / f"error-{here}.json").write_text(json.dumps({"kind": type(error).__name__, "text": text}))
        raise
    torch.save(kill_worker.left_by(trainer), folder / f"left-{here}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "resume")
