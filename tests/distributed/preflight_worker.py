# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of test_preflight.py: looks ahead on scripted completions, trains, and saves what it was told."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

import worker
from trl_opsd import preflight


def main(folder: str, options: dict) -> None:
    torch.set_num_threads(1)
    looks = options.pop("looks", True)
    trainer = worker.build(folder, options)
    rank = trainer.accelerator.process_index
    report = asdict(preflight(trainer, rows=8)) if looks else None
    trainer.train()
    (Path(folder) / f"report-{rank}.json").write_text(json.dumps(report))
    weights = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    torch.save({name: weight.detach() for name, weight in weights.items()}, Path(folder) / f"weights-{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
