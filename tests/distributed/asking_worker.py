# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of test_asking.py: trains with sources that fail on the second rank alone, and tells what came."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

import conftest  # sets the environment before torch
import tiny
from trl_opsd import OPSDConfig, OPSDTrainer, View
from trl_opsd.privileged import rollouts_of


ROWS = [{"prompt": [{"role": "user", "content": f"{i} + 1?"}]} for i in range(8)]


def spoken(prompts: list, trainer: Any) -> dict[str, Any]:
    """The second rank speaks of a hint."""
    ids = trainer.processing_class(["A hint!" if trainer.accelerator.process_index else "It is 2."])["input_ids"]
    count = len(prompts)
    logps = [[0.0] * len(ids[0])] * count
    return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": ids * count, "logprobs": logps}


def good(groups: list) -> list[list[View]]:
    return [[View("Count.")] for _ in rollouts_of(groups)]


def raises(groups: list) -> list[list[View]]:
    raise KeyError("no such solution")


async def raises_late(groups: list) -> list[list[View]]:
    await asyncio.sleep(0.05)
    raise KeyError("no such solution")


def late(groups: list) -> list[list[View]]:
    time.sleep(1.5)
    return good(groups)


async def late_async(groups: list) -> list[list[View]]:
    await asyncio.sleep(1.5)
    return good(groups)


def bad_view(groups: list) -> list[list[View]]:
    return [[View("Count.", weight=0)], *good(groups)[1:]]


def exits(groups: list) -> list[list[View]]:
    sys.exit("no more")


def cancels(groups: list) -> list[list[View]]:
    raise asyncio.CancelledError


KINDS: dict[str, tuple[Callable, float | None]] = {  # what the second rank asks, and the timeout of both
    "raises": (raises, None),
    "async raises": (raises_late, None),
    "late": (late, 0.5),
    "async late": (late_async, 0.5),
    "nothing": (lambda groups: None, None),
    "exits": (exits, None),
    "is cancelled": (cancels, None),
    "a bad view": (bad_view, None),
}


def run(folder: Path, rank: int, kind: str, on_error: str) -> dict[str, Any]:
    """Two steps of four rollouts."""
    source, timeout = KINDS[kind]
    tokenizer = tiny.tokenizer()
    options = {"per_device_train_batch_size": 2, "use_cpu": True, "privileged_on_error": on_error}
    trainer = OPSDTrainer(
        tiny.model(tokenizer),
        args=OPSDConfig(str(folder), **{**conftest.ARGS, **options}, privileged_timeout=timeout),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        rollout_func=spoken,
        privileged=source if rank else good,
    )
    error = None
    try:
        trainer.train()
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    logs = [log for log in trainer.state.log_history if "loss" in log]
    names = ("source_errors", "view_share", "leak/phrases", "leak/quotes")
    metrics = {name: [log[f"self_distillation/{name}"] for log in logs] for name in names}
    weights = trainer.accelerator.unwrap_model(trainer.model).state_dict().values()
    return {
        "error": error,
        "steps": trainer.state.global_step,
        "views": [] if error else [len(row) for row in trainer.collected.views],
        "weights": sum(float(tensor.double().abs().sum()) for tensor in weights),
        **metrics,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    told = {f"{kind}, {how}": run(folder, rank, kind, how) for kind in KINDS for how in ("skip", "error")}
    (folder / f"told-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
