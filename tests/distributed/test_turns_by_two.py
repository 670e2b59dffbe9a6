# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Turns in two processes are those in one, also where a rank's units all end; an error of one rank reaches both."""

import json
from pathlib import Path

import pytest
import torch

from launch import launch, outcome


WORKER = Path(__file__).parent / "turns_worker.py"
LIMIT_SECONDS = 120
SAMPLED = {"distillation_mode": "sampled_token", "distillation_alpha": 1.0, "teacher_model_kind": "live"}
COLUMN = {"slots": ["first", "distil"], "source": {"with_attempt": "column"}}
CASES = {
    "a group straddles the ranks": {
        "rows_with_view": [*range(8)], "reward": True, "num_generations": 8, **SAMPLED, "privileged_source": "none",
        "turns": COLUMN | {"otherwise": "idle", "when": {"reward_from": 2.0}},
    },
    "the units of one rank all end": {
        "rows_with_view": [2, 3, 6, 7], "reward": True, "num_generations": 2, **SAMPLED, "privileged_source": "none",
        "turns": COLUMN,
    },
    "credit of a group that straddles the ranks": {
        "rows_with_view": [*range(8)], "reward": True, "num_generations": 8, "method": "rltf_sd",
        "turns": COLUMN | {"otherwise": "idle", "when": {"reward_from": 2.0}},
    },
    "means of right and wrong answers": {
        "rows_with_view": [*range(8)], "reward": True, "num_generations": 4, "method": "vpd",
        "turns": {"slots": ["first", "reread"], "source": "column"}, "success_reward_threshold": 2.0,
    },
    "what the teacher reads of the turns": {
        "rows_with_view": [0, 1, 2, 6], "reward": True, "num_generations": 4, "max_steps": 3,
        "turns": COLUMN | {"slots": ["first", "second", "distil", "reread"], "otherwise": "idle", "every": 2},
        "privileged_source": {"turn_context": {"roles": ["first", "second", "distil", "reread"]}},
    },
}  # fmt: skip


def options_of(case: dict, processes: int) -> str:
    return json.dumps({**case, "per_device_train_batch_size": 8 // processes, "per_device_eval_batch_size": 8})


def trained(folder: Path, processes: int, case: dict) -> tuple[list[dict], list[dict], list[list[bool]]]:
    folder.mkdir()
    launch(WORKER, str(folder), options_of(case, processes), processes=processes, seconds=LIMIT_SECONDS)
    weights = [torch.load(folder / f"weights-{rank}.pt") for rank in range(processes)]
    units = [json.loads((folder / f"units-{rank}.json").read_text()) for rank in range(processes)]
    return weights, json.loads((folder / "history.json").read_text()), units


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(tmp_path, case):
    one, history_one, (units,) = trained(tmp_path / "one", 1, CASES[case])
    two, history_two, units_two = trained(tmp_path / "two", 2, CASES[case])
    assert units == [*units_two[0], *units_two[1]]
    if case == "the units of one rank all end":
        assert not any(units_two[0]) or not any(units_two[1])
    for name, tensor in two[0].items():
        assert torch.equal(tensor, two[1][name]), f"{name} differs between the ranks"
        torch.testing.assert_close(tensor, one[0][name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for log_one, log_two in zip(history_one[:2], history_two[:2], strict=True):
        names = [name for name in log_one if "self_distillation" in name or name in ("loss", "reward")]
        assert "self_distillation/turns/unit_share" in names
        for name in names:
            assert log_two[name] == pytest.approx(log_one[name], rel=1e-3, abs=1e-4), name


def test_a_source_that_fails_on_one_rank_ends_both(tmp_path):
    case = CASES["the units of one rank all end"] | {"failing": 1}
    code, output = outcome(WORKER, str(tmp_path), options_of(case, 2), processes=2, seconds=LIMIT_SECONDS)
    assert code != 0 and "OSError: the critic does not answer" in output
    assert "Another process failed, so this one stops too. OSError from the source of the turns on process 1" in output
