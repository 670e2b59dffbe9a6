# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of test_turns_by_two.py: a run with turns on scripted texts, with a source that may fail on one rank."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

import worker


def script_by_call(trainer: Any) -> None:
    """Texts of the first call of a batch by prompt and place among all ranks, those of the second by prompt alone: how
    many of these a rank asks for depends on its units."""
    rank, begin, calls = trainer.accelerator.process_index, trainer.turns.begin, [0]

    def counted_begin(rows: list) -> None:
        calls[0] = 0
        begin(rows)

    def single_turn(prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        calls[0] += 1
        first = rank * len(prompt_ids)
        places = [first + i if calls[0] == 1 else 7 for i in range(len(prompt_ids))]
        seeds = [sum(ids) + 31 * place for ids, place in zip(prompt_ids, places, strict=True)]
        return [[3 + (s * (j + 7)) % 250 for j in range(1 + s % 7)] + [2] for s in seeds], None

    trainer.turns.begin, trainer._generate_single_turn = counted_begin, single_turn


def main(folder: str, options: dict) -> None:
    torch.set_num_threads(1)
    failing = options.pop("failing", None)
    trainer = worker.build(folder, options)
    rank = trainer.accelerator.process_index
    script_by_call(trainer)
    if failing == rank:

        def source(groups: list) -> list:
            raise OSError("the critic does not answer")

        trainer.turns.asking.asker.source = source
    trainer.train()
    torch.save({n: p.detach() for n, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()},
               Path(folder) / f"weights-{rank}.pt")  # fmt: skip
    goes_on = [unit.goes_on for unit in trainer.turns.units]
    (Path(folder) / f"units-{rank}.json").write_text(json.dumps(goes_on))
    if rank == 0:
        (Path(folder) / "history.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
