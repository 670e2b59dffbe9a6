# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Two gloo processes collect what one collects, in the same order; a mistake ends both."""

import json
from pathlib import Path

import pytest

from launch import launch


WORKER = Path(__file__).parent / "collect_worker.py"
# Greedy answers, as the two processes draw other random numbers than one
OPTIONS = {"rows_with_view": [1, 2, 4, 6], "reward": True, "num_generations": 2, "temperature": 0.001}


def collected(folder: Path, processes: int, **options) -> list[dict]:
    """Result of each rank."""
    folder.mkdir()
    options = {"per_device_train_batch_size": 8 // processes, **OPTIONS, **options}
    launch(WORKER, str(folder), json.dumps(options), processes=processes, seconds=120)
    return [json.loads((folder / f"rows-{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize(
    "options",
    [
        {"layouts": ["answer", "distil"], "keep": ["unique"], "rows": 6},
        # A group on both ranks, of which one rollout is above the mean; and a last batch that is filled up
        {"layouts": ["answer"], "keep": ["above_group_mean"], "rows": 3, "num_generations": 8},
    ],
    ids=["views on some rows", "a group on both ranks"],
)
def test_two_processes_collect_what_one_collects(tmp_path, options):
    (one,) = collected(tmp_path / "one", 1, **options)
    two, other = collected(tmp_path / "two", 2, **options)
    assert json.dumps(one) == json.dumps(two) == json.dumps(other) and one["rows"]["answer"]
    files = [sorted((tmp_path / name / "_collected").rglob("*.jsonl")) for name in ("one", "two")]
    assert [path.read_text() for path in files[0]] == [path.read_text() for path in files[1]]


def test_a_mistake_ends_both(tmp_path):
    two, other = collected(tmp_path / "two", 2, layouts=["generation"], keep=[], rows=4)
    assert "changes the prompt itself" in two["error"] and two == other
