# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The runs of test_server_teacher_by_two.py, each in one process and in two, with a teacher on a server.

This process imports everything once and forks the ranks.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import worker
from processes import fork, free_port
from trl_opsd.teacher import server_client


def train(folder: Path, rank: int, options: dict[str, Any]) -> None:
    """One rank, to its end or its error: weights, log, and what it has sent."""
    sent: list[list[int]] = []
    try:
        trainer = worker.build(str(folder), options)
        inner = trainer.teacher.client.ask

        def ask(path: str, body: dict[str, Any] | None = None, server: int | None = None) -> Any:
            sent.append(body["prompt"])
            return inner(path, body, server)

        trainer.teacher.client.ask = ask
        trainer.train()
        trainer.evaluate()
    except Exception as error:
        said = {"kind": type(error).__name__, "text": str(error)}
        (folder / f"error-{rank}.json").write_text(json.dumps(said))
        os._exit(0)
    (folder / f"sent-{rank}.json").write_text(json.dumps(sent))
    weights = {name: param.detach() for name, param in trainer.model.named_parameters()}
    torch.save({name.removeprefix("module."): param for name, param in weights.items()}, folder / f"weights-{rank}.pt")
    (folder / f"history-{rank}.json").write_text(json.dumps(trainer.state.log_history))
    os._exit(0)


def run(folder: Path, processes: int, options: dict[str, Any]) -> None:
    """Fork the ranks of a run, and wait for them."""
    folder.mkdir(parents=True)
    port, ranks = free_port(), []
    for rank in range(processes):
        process = fork()
        if process == 0:
            if processes > 1:
                os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
            sizes = ("per_device_train_batch_size", "per_device_eval_batch_size")
            train(folder, rank, options | dict.fromkeys(sizes, 8 // processes))
        ranks.append(process)
    for process in ranks:
        os.waitpid(process, 0)


def main(folder: Path, runs: dict[str, dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    server_client.FIRST_WAIT = 0.01
    for name, options in runs.items():
        for processes in options.pop("processes"):
            run(folder / name / str(processes), processes, dict(options))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
