# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Results that are kept in a file each, so that a finished run is not repeated."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kept(path: Path, key: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """
    Results of a run: those in its file, or new ones. A failure is a result too, and is tried again.

    Args:
        path (`Path`): File of the run.
        key (`dict[str, Any]`): What makes a run another one; it is part of the result.
        run (`Callable`): Makes the results.
    """
    if path.exists():
        result = json.loads(path.read_text())
        if "error" not in result and json.loads(json.dumps(key)).items() <= result.items():
            return result
    try:
        result = {**key, **run()}
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        result = {**key, "error": f"{type(error).__name__}: {error}"}
    path.write_text(json.dumps(result, indent=1) + "\n")
    return result
