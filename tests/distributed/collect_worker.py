# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of test_collect_by_two.py: collects rows, and saves what it was given."""

import json
import sys
from pathlib import Path

import torch

import worker
from trl_opsd.phases.collect import collect


def main(folder: str, options: dict) -> None:
    torch.set_num_threads(1)
    rows, given = options.pop("rows"), {name: options.pop(name) for name in ("layouts", "keep")}
    trainer = worker.build(folder, options)
    try:
        found = collect(trainer, rows, **given)
    except ValueError as error:
        told = {"error": str(error)}
    else:
        told = {"rows": found.rows, "told": str(found)}
        if trainer.is_world_process_zero():
            found.write(folder)
    (Path(folder) / f"rows-{trainer.accelerator.process_index}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
