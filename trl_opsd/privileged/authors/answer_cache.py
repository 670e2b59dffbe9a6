# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Disk cache of an author's answers, keyed by the request. Several processes may read and write at the same time."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


class AnswerCache:
    """
    Cache entry of one request.

    Args:
        folder (`Path`): Folder of all entries; made when the first is written.
        address (`str`): Address that is asked.
        body (`dict[str, Any]`): Body of the request: model, prompt and options of the sampling.
    """

    def __init__(self, folder: Path, address: str, body: dict[str, Any]):
        request = json.dumps([address, body], sort_keys=True, ensure_ascii=True)
        name = hashlib.sha256(request.encode()).hexdigest()
        self.path = folder / name[:2] / f"{name}.json"

    def read(self) -> str | None:
        """Cached text; `None` if there is none, or a file that is not whole."""
        try:
            text = json.loads(self.path.read_text(encoding="utf-8"))["text"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return text if isinstance(text, str) else None

    def write(self, text: str) -> None:
        """Write a text, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"text": text}, file)
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
