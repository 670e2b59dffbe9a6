# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The runs of test_restarts.py that are killed: this process imports everything once and forks each run.

A run is killed with SIGKILL at random points, some of them while it writes a checkpoint, and is resumed from its last
complete checkpoint until it ends. Then all that it leaves must be that of the uninterrupted run, to the last bit.
"""

import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset

import conftest  # sets the environment before torch
import processes
import tiny
from trl_opsd import OPSDConfig, OPSDTrainer
from trl_opsd.checkpoints.folders import MARKER, last_complete
from trl_opsd.monitoring.alerts import SignalMonitor


STEPS = 11  # of the optimizer
# A generation batch is an epoch and lasts for four steps; logs, checkpoints and evaluations fall on different ones
OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "num_generations": 2,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "max_steps": STEPS,
    "max_completion_length": 6,
    "learning_rate": 1e-2,
    "logging_steps": 4,
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 2,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "teacher_model_kind": "ema",
    "teacher_update_rate": 0.1,
    "log_completions": True,
    "num_completions_to_print": 0,
    "use_cpu": True,
}
ROWS = [
    {
        "prompt": [{"role": "user", "content": "What is " + "very " * (i % 4) + f"{i}?"}],
        "privileged_context": f"The answer is {i}." if i % 3 else None,
    }
    for i in range(8)
]
TIMED = ("runtime", "per_second", "step_time")


class RecordedTrainer(OPSDTrainer):
    """Writes down every micro-batch of training as it is handed to the loss."""

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training:
            rows = {name: inputs[name].tolist() for name in ("prompt_ids", "completion_ids", "advantages")}
            with open(Path(self.args.output_dir) / f"rows-{self.args.process_index}.jsonl", "a") as file:
                file.write(json.dumps([self._step, rows]) + "\n")
        return inputs


def build(folder: Path, data: Any = None, reward: Any = conftest.length_reward, **arguments: Any) -> RecordedTrainer:
    """The trainer of one run. Keywords go to `OPSDConfig` or, where they are its arguments, to the trainer."""
    tokenizer = tiny.tokenizer()
    own = {name: arguments.pop(name) for name in ("privileged", "callbacks") if name in arguments}
    return RecordedTrainer(
        tiny.model(tokenizer, attention_dropout=0.1),
        reward_funcs=reward,
        args=OPSDConfig(str(folder), **{**conftest.ARGS, **OPTIONS, **arguments}),
        train_dataset=Dataset.from_list(ROWS) if data is None else data,
        eval_dataset=Dataset.from_list(ROWS[:4]),
        processing_class=tokenizer,
        **own,
    )


def untimed(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in log.items() if not name.endswith(TIMED)} for log in logs]


def watched(monitor: SignalMonitor) -> dict[str, Any]:
    windows = monitor.windows.items()
    return {name: [one.first, one.last, one.count] for name, one in windows if not name.endswith(TIMED)}


def left_by(trainer: RecordedTrainer) -> dict[str, Any]:
    """All of a run that must be equal, in types that `torch.load` reads."""
    folder = Path(trainer.args.output_dir)
    # Written by the main process, maybe while another one reads
    tables = sorted((folder / "completions").glob("*.parquet")) if trainer.accelerator.is_main_process else []
    return {
        "weights": dict(trainer.model.named_parameters()),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "teacher": trainer.teacher.weights.copies,
        "random": torch.random.get_rng_state(),
        "log": untimed(trainer.state.log_history),
        "monitor": [watched(trainer.monitor), sorted(trainer.monitor.said)],
        "table": [(path.name, path.read_bytes()) for path in tables],
        "checkpoints": sorted(path.name for path in folder.glob("*checkpoint*")),
    }


def run(folder: Path, stream: bool) -> None:
    """One run to its end, from the last complete checkpoint in `folder`, if there is one."""
    trainer = build(folder, IterableDataset.from_generator(lambda: iter(ROWS * 4)) if stream else None)
    trainer.train(resume_from_checkpoint=last_complete(folder) is not None)
    torch.save(left_by(trainer), folder / "left.pt")


def fork(folder: Path, stream: bool) -> int:
    """Start a run in a process of its own, with its output in a file."""
    folder.mkdir(exist_ok=True)
    process = processes.fork()
    if process:
        return process
    code = 1
    try:
        with open(folder / "output.txt", "a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        run(folder, stream)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(process: int) -> bool:
    """Whether a run has come to its end. A failure of its own ends the test."""
    done, status = os.waitpid(process, os.WNOHANG)
    assert not done or status == 0, f"a run failed on its own: status {status}"
    return done != 0


def wait(process: int, until: Any) -> bool:
    """Look every half millisecond; `False` if the run has ended before."""
    while not until():
        if ended(process):
            return False
        time.sleep(0.0005)
    return True


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def point(folder: Path, chance: random.Random, seconds: float, inside: bool) -> Any:
    """When to kill: after a random time, or a random moment after a checkpoint has been begun."""
    begin, late = time.monotonic(), chance.uniform(0, seconds)
    if not inside:
        return lambda: time.monotonic() - begin > late
    step = chance.randrange(1, STEPS // 3 + 1) * 3
    delay = chance.uniform(0, 0.02)

    def reached() -> bool:
        if not (folder / f"checkpoint-{step}" / MARKER).exists():
            return False
        time.sleep(delay)
        return True

    return reached


def same(one: Any, other: Any, place: str) -> None:
    """Equal to the last bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), f"{place} differs by {(one.double() - other.double()).abs().max()}"
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), f"{place}: {one.keys() ^ other.keys()}"
        for name in one:
            same(one[name], other[name], f"{place}/{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), f"{place} has length {len(other)}, not {len(one)}"
        for i, (left, right) in enumerate(zip(one, other, strict=True)):
            same(left, right, f"{place}/{i}")
    else:
        both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
        assert both_nan or one == other, f"{place}: {other!r}, not {one!r}"


def rows_of(folder: Path, rank: int) -> list[list[Any]]:
    """The recorded micro-batches; a line that a kill cut off is none."""
    lines = (folder / f"rows-{rank}.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def compare(folder: Path, reference: Path, rank: int = 0) -> None:
    """What the run left, and each micro-batch it trained on, also those that a kill lost and it trained on again."""
    same(torch.load(reference / "left.pt"), torch.load(folder / "left.pt"), "")
    expected = dict(rows_of(reference, rank))
    seen = rows_of(folder, rank)
    for step, rows in seen:
        same(expected[step], rows, f"micro-batch {step}")
    assert {step for step, _ in seen} == expected.keys()


def main(folder: Path, points: int, seed: int, stream: bool) -> None:
    torch.set_num_threads(1)
    chance = random.Random(seed)
    reference = folder / "reference"
    begin = time.monotonic()
    process = fork(reference, stream)
    wait(process, lambda: False)
    seconds = time.monotonic() - begin
    kills = half_written = runs = 0
    while kills < points:
        runs += 1
        killed = folder / f"killed-{runs}"
        again = True
        while again:
            process = fork(killed, stream)
            if not wait(process, point(killed, chance, seconds, inside=kills % 2 == 1)):
                break  # it was quicker than the kill
            kill(process)
            kills += 1
            half_written += len(list(killed.glob(f"checkpoint-*/{MARKER}")))
            again = kills < points and chance.random() < 0.5
        else:
            wait(fork(killed, stream), lambda: False)
        compare(killed, reference)
    print(json.dumps({"kills": kills, "half_written": half_written, "runs": runs, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "stream")
