# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Files of JSON lines: read by reports without torch, written by a run."""

import json
import math
from pathlib import Path
from typing import Any


Line = dict[str, Any]


def plain(value: Any) -> Any:
    """A value that JSON holds: what is not finite becomes null, other objects their text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.item() if hasattr(value, "item") else str(value)


def read(path: Path) -> list[Line]:
    """Whole lines of a file, if it is there: a killed run may have left a half one at its end."""
    lines: list[Line] = []
    if not path.is_file():
        return lines
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def write(path: Path, lines: list[Line], indent: int | None = None) -> None:
    """Put lines of JSON in place of a file, at once."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text("".join(json.dumps(plain(line), indent=indent) + "\n" for line in lines), encoding="utf-8")
    unfinished.replace(path)


def append(path: Path, line: Line) -> None:
    """Add a line of JSON to a file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(plain(line)) + "\n")
