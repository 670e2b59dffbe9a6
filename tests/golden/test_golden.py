# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Recorded runs come out as they did: to the last bit on the machine and with the versions of the record, elsewhere up to
rounding. `runs.py` says how to record them anew where a change of results is meant.
"""

import json
import math
from pathlib import Path

import pytest

from launch import launch


FOLDER = Path(__file__).parent
RECORDED = json.loads((FOLDER / "values.json").read_text())
TWO = [name for name in RECORDED if name.startswith("two processes")]
ONE = [name for name in RECORDED if name not in (*TWO, "fingerprint")]
# A rounding grows over the steps of a run, and a sampled token may change with it
ROUNDING = 1e-3


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What the runs give now, started twice: in one process and in two."""
    values = {}
    for processes, limit in ((1, 400), (2, 200)):
        file = tmp_path_factory.mktemp("golden") / "values.json"
        launch(FOLDER / "runs.py", str(file), processes=processes, seconds=limit)
        values |= json.loads(file.read_text())
    return values


def test_the_same_runs(found):
    assert found.keys() == RECORDED.keys()


@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_golden(found, name):
    if found["fingerprint"] == RECORDED["fingerprint"]:
        assert found[name]["log"] == RECORDED[name]["log"]
        assert found[name]["weights"] == RECORDED[name]["weights"]
        return
    first, recorded = found[name]["log"][0], RECORDED[name]["log"][0]
    assert first.keys() == recorded.keys()
    assert not [key for key in first if not math.isclose(first[key], recorded[key], rel_tol=ROUNDING, abs_tol=1e-4)]
    assert found[name]["norm"] == pytest.approx(RECORDED[name]["norm"], rel=ROUNDING)
