# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of test_server_teacher_by_two.py: trains against a server, and notes what it sends."""

import json
import sys
from pathlib import Path

import torch

import worker
from trl_opsd.teacher import server_client


def main(folder: str, options: dict) -> None:
    torch.set_num_threads(1)
    server_client.FIRST_WAIT = 0.01
    trainer = worker.build(folder, options)
    rank = trainer.accelerator.process_index
    inner, sent = trainer.teacher.client.ask, []

    def ask(path, body=None, server=None):
        sent.append(body["prompt"])
        return inner(path, body, server)

    trainer.teacher.client.ask = ask
    try:
        trainer.train()
        trainer.evaluate()
    except Exception as error:
        said = {"kind": type(error).__name__, "text": str(error)}
        (Path(folder) / f"error-{rank}.json").write_text(json.dumps(said))
        return
    (Path(folder) / f"sent-{rank}.json").write_text(json.dumps(sent))
    weights = {
        name: param.detach() for name, param in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    }
    torch.save(weights, Path(folder) / f"weights-{rank}.pt")
    if rank == 0:
        (Path(folder) / "history.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
