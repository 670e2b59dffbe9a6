# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Data sets of the example tasks, by name: folders that `datasets.load_dataset` reads as two splits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl_opsd.examples import document, tasks
from trl_opsd.examples.agents import calculator, shop


Row = dict[str, Any]

FOLDER = Path("demo/data")
# Rows by split, from a seed
TASKS: dict[str, Callable[[int], dict[str, list[Row]]]] = {
    "json": tasks.json_task,
    "addition": tasks.addition_task,
    "calculator": calculator.task,
    "shop": shop.task,
}
NAMES = (*TASKS, "pictures", "document")


def prepare(name: str, target: Path | None = None, seed: int = 0) -> Path:
    """
    Write the splits `train` and `test` of a task.

    Args:
        name (`str`): One of `NAMES`.
        target (`Path`, *optional*): Folder for them. `None` means that of the recipes, `demo/data/NAME`.
        seed (`int`): Of the choice and the order of rows.

    Returns:
        `Path`: The folder.
    """
    target = FOLDER / name if target is None else target
    if name == "pictures":
        from trl_opsd.examples import pictures  # needs Pillow

        return pictures.prepare(target, seed)
    if name == "document":  # beside its questions, the document itself
        return document.prepare(target)
    target.mkdir(parents=True, exist_ok=True)
    for split, rows in TASKS[name](seed).items():
        (target / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return target
