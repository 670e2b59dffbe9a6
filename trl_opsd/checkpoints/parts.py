# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""State of the parts that a trainer is made of: saved with each checkpoint and restored from it, part by part."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from accelerate.logging import get_logger


logger = get_logger(__name__)


class Stateful(Protocol):
    """A part of a trainer with a state that a resumed run needs."""

    def state(self) -> dict[str, Any]:
        """The state, made of dicts, lists, numbers, text and `None`."""

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what [`state`] returned."""


def _file(folder: Path, process_index: int) -> Path:
    return folder / f"_parts_{process_index}.json"  # what begins so is not pushed to the Hub


def save_parts(parts: Mapping[str, Stateful], folder: Path, process_index: int) -> None:
    """
    Write the states of this process into a checkpoint.

    Raises:
        TypeError: If a state holds what JSON can't, naming the part.
    """
    states = {}
    for name, part in parts.items():
        states[name] = part.state()
        try:
            json.dumps(states[name])
        except TypeError as error:
            raise TypeError(f"The state of the part {name!r} can't be saved as JSON: {error}") from None
    if states:
        _file(folder, process_index).write_text(json.dumps(states) + "\n", encoding="utf-8")  # ASCII


def load_parts(parts: Mapping[str, Stateful], folder: Path, process_index: int) -> None:
    """Restore the states from a checkpoint: this process' own or, in a run with more processes, the first one's."""
    files = [file for file in (_file(folder, process_index), _file(folder, 0)) if file.is_file()]
    states = json.loads(files[0].read_text(encoding="utf-8")) if files else {}
    for name, part in parts.items():
        if name in states:
            part.restore(states[name])
        elif part.state():
            logger.warning(f"The checkpoint {folder} holds no state of the part {name!r}, which starts anew.")
