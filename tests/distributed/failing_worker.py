# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The runs of test_failures.py in two processes: something fails in the middle of training, on one rank alone.

This process imports everything once and forks the ranks. Nothing ends a rank when the other has failed, as between
machines; each must come to its end by itself.
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import conftest
import kill_worker
from processes import fork, free_port
from trl_opsd import DatasetColumn, View


FROM_STEP = 4  # checkpoints are written at 3, 6, 9 and 11; generations begin at 0, 4 and 8
LIMIT_SECONDS = 60  # of a run
BOTH = 2  # of what fails on both ranks

# Name of the run, what fails, on which rank, and whether it goes on from what another run of that name left
RUNS: list[tuple[str, str, int, bool]] = [
    ("whole", "nothing", 0, False),
    ("reward", "reward", 1, False),
    ("reward of both", "reward", BOTH, False),
    ("source", "source", 1, False),
    ("overlong", "overlong", 0, False),
    ("written", "written", 1, False),
    ("disk", "disk", 0, False),
    ("disk", "nothing", 0, True),
]


class Failing:
    """What fails from one step on, on one rank."""

    def __init__(self, kind: str, folder: Path):
        self.kind, self.folder = kind, folder
        self.due = False

    def trips(self, kind: str) -> bool:
        if not (self.due and self.kind == kind):
            return False
        (self.folder / "failed-at").write_text(str(time.time()))
        return True

    def reward(self, completions: list, **kwargs: Any) -> list[float]:
        if self.trips("reward"):
            raise OSError("the judge does not answer")
        return conftest.length_reward(completions)

    def source(self, groups: list) -> list[list[View]]:
        if self.trips("source"):
            raise KeyError("no such solution")
        if self.trips("written"):  # where what the teacher reads is to be written down
            (self.folder / "_privileged" / f"train-{groups[0][0].step:06d}-1.jsonl").mkdir()
        views = DatasetColumn("privileged_context")(groups)
        if self.trips("overlong"):
            return [[View("very " * 200)], *views[1:]]
        return views


class Clock(TrainerCallback):
    """Tells when the failure is due. A full disk is one that takes no file beyond a size, here the optimizer's."""

    def __init__(self, failing: Failing):
        self.failing = failing

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.failing.due = state.global_step >= FROM_STEP
        if self.failing.trips("disk"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (180 * 1024, resource.RLIM_INFINITY))


def train(folder: Path, rank: int, kind: str, resume: bool) -> None:
    """One rank, to its end or its error."""
    failing = Failing(kind, folder)
    trainer = kill_worker.build(
        folder,
        reward=failing.reward,
        privileged=failing.source,
        callbacks=[Clock(failing)],
        per_device_train_batch_size=2,
        save_total_limit=1,
        log_privileged_context=True,
    )
    try:
        trainer.train(resume_from_checkpoint=resume)
    except Exception as error:
        said = {"kind": type(error).__name__, "text": "".join(traceback.format_exception(error))}
        said["seconds"] = time.time() - float((folder / "failed-at").read_text())
        (folder / f"error-{rank}.json").write_text(json.dumps(said))
        raise  # out by the interpreter's own way, in which a process group could hang
    torch.save(kill_worker.left_by(trainer), folder / f"left-{rank}.pt")
    os._exit(0)


def both_ranks(folder: Path, kind: str, failing_rank: int, resume: bool) -> list[int]:
    """Run both ranks. Those that did not come to an end and had to be killed."""
    folder.mkdir(exist_ok=True)
    port, processes = free_port(), []
    for rank in range(2):
        process = fork()
        if process == 0:
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
            with open(folder / f"output-{rank}.txt", "a") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            train(folder, rank, kind if failing_rank in (rank, BOTH) else "nothing", resume)
        processes.append(process)
    running, begin = dict(enumerate(processes)), time.monotonic()
    while running and time.monotonic() - begin < LIMIT_SECONDS:
        running = {rank: process for rank, process in running.items() if not os.waitpid(process, os.WNOHANG)[0]}
        time.sleep(0.01)
    for process in running.values():
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return list(running)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    hung: dict[str, list[int]] = {}
    for name, kind, rank, resume in RUNS:
        hung[f"{name}, resumed" if resume else name] = both_ranks(folder / name, kind, rank, resume)
    (folder / "hung.json").write_text(json.dumps(hung))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
