# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Catalog of options, methods, sources, conditions and rewards, readable without importing torch.

`python scripts/catalog.py` makes catalog.json from the code, and a test compares the two.
"""

import functools
import json
from pathlib import Path
from typing import Any


FILE = Path(__file__).with_name("catalog.json")


@functools.cache
def catalog() -> dict[str, Any]:
    """
    The catalog.

    Returns:
        `dict[str, Any]`: `options` (by name: type, default, choices, help, origin), `launch` (options of `accelerate
        launch`, and whether they take a value), `methods` (by name: the fields of a method and its text), `sources` and
        `conditions` (by name: text and options), `compound` (names of sources made of others), `rewards` (names of
        TRL's), and the `versions` that it was made with.
    """
    return json.loads(FILE.read_text(encoding="utf-8"))
