# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Under engines that shard, a run of two processes that is resumed inside a generation batch is the whole one."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch import launch


WORKER = Path(__file__).parent / "sharded_restart_worker.py"
LIMIT_SECONDS = 240
LORA = {"lora": {}, "teacher_model_kind": "base"}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ZeRO-2": ("zero2", {"teacher_model_kind": "ema"}),
    "ZeRO-3": ("zero3", {"teacher_model_kind": "ema"}),
    "ZeRO-3, base": ("zero3", {"teacher_model_kind": "base"}),
    "ZeRO-3, LoRA": ("zero3", LORA),
    "FSDP2": ("fsdp2", {"teacher_model_kind": "ema"}),
    "FSDP2, live": ("fsdp2", {"teacher_model_kind": "live"}),
    "FSDP2, LoRA": ("fsdp2", {"lora": {}, "teacher_model_kind": "snapshot", "teacher_sync_steps": 2}),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What differs in each case, by rank. One launch for each family, as no process can have both."""
    pytest.importorskip("deepspeed")
    found: list[dict[str, Any]] = [{}, {}]
    for family in ("zero", "fsdp"):
        folder = tmp_path_factory.mktemp(family)
        cases = {case: given for case, given in CASES.items() if given[0].startswith(family)}
        launch(WORKER, str(folder), json.dumps(cases), processes=2, seconds=LIMIT_SECONDS)
        for rank in range(2):
            found[rank] |= json.loads((folder / f"results-{rank}.json").read_text())
    return found


@pytest.mark.timeout(2 * LIMIT_SECONDS + 10)
@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_whole(results, case):
    for rank in range(2):
        assert results[rank][case] == [], f"rank {rank}: {results[rank][case]}"
