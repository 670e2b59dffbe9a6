# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Two gloo processes give what one gives, and none hangs where a rank has nothing to distil."""

import json
from pathlib import Path

import pytest
import torch

from launch import launch
from trl_opsd.token_report.record import path_of, read


WORKER = Path(__file__).parent / "worker.py"
LIMIT_SECONDS = 120
PREFIX = "self_distillation/"


def train(folder: Path, processes: int, eval_size: int = 8, **options) -> tuple[list[dict], list[dict]]:
    """Final weights of each rank, and the log."""
    folder.mkdir()
    options["per_device_train_batch_size"] = 8 // processes
    options["per_device_eval_batch_size"] = eval_size // processes
    launch(WORKER, str(folder), json.dumps(options), processes=processes, seconds=LIMIT_SECONDS)
    weights = [torch.load(folder / f"weights-{rank}.pt") for rank in range(processes)]
    return weights, json.loads((folder / "history.json").read_text())


CASES = {
    "pure, views on one rank alone": {"rows_with_view": [5, 6, 7]},
    "mixed, a group straddles the ranks": {"rows_with_view": [0, 1], "reward": True, "num_generations": 8},
    "sampled token, LoRA": {
        "rows_with_view": [1, 2, 7], "reward": True, "num_generations": 2, "lora": {}, "learning_rate": 5.0,
        "distillation_mode": "sampled_token", "distillation_alpha": 1.0,
    },
    "the shortest success of a group on both ranks": {
        "rows_with_view": [], "reward": True, "num_generations": 8, "success_reward_threshold": 2.0,
        "privileged_source": {"sibling": {"choice": "shortest"}},
    },
    "votes of a group on both ranks, and drawn siblings": {
        "rows_with_view": [], "reward": True, "num_generations": 8, "success_reward_threshold": 1.0,
        "privileged_source": {
            "all_of": [
                {"pseudo_reference": {"answer": "(?s)^(.)", "least_share": 0.1, "show": "shortest", "name": "votes"}},
                {"sibling": {"choice": "random"}},
            ]
        },
    },
    "ema, sequence mean": {
        "rows_with_view": [0, 6], "teacher_model_kind": "ema", "distillation_reduction": "sequence_mean",
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(tmp_path, case):
    one, history_one = train(tmp_path / "one", 1, **CASES[case])
    two, history_two = train(tmp_path / "two", 2, **CASES[case])
    for name, tensor in two[0].items():
        assert torch.equal(tensor, two[1][name]), f"{name} differs between the ranks"
        torch.testing.assert_close(tensor, one[0][name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for log_one, log_two in zip(history_one[:2], history_two[:2], strict=True):
        names = [name for name in log_one if PREFIX in name or name in ("loss", "reward", "entropy")]
        assert any(name.endswith("divergence") for name in names)
        for name in names:
            assert log_two[name] == pytest.approx(log_one[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("case", [{}, {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}], ids=str)
def test_an_evaluation_whose_last_batch_is_filled_up(tmp_path, case):
    """Five rows, two rollouts of each, four at once: of two processes the second gets rows of the first batch once
    more. They count in no metric of the package, nor in the loss, nor in the scores of student and teacher."""
    options = {
        "eval_teacher_prompts": 5,
        "generation_kwargs": {"do_sample": False},
        "rows_with_view": [0, 1, 4],
        "eval_rows": 5,
        "eval_size": 4,
        "reward": True,
        "num_generations": 2,
        **case,
    }
    (_, one), (_, two) = (train(tmp_path / str(number), number, **options) for number in (1, 2))
    log_one, log_two = ([entry for entry in history if "eval_loss" in entry] for history in (one, two))
    names = [name for name in log_one[0] if PREFIX in name or "@" in name or name == "eval_loss"]
    assert {"eval_avg@2", "eval_pass@2", "eval_teacher/privileged/avg@2"} <= set(names)
    assert len(names) > 15 and log_one[0]["eval_loss"] != 0.0
    assert log_one[0][f"eval_{PREFIX}view_share"] == pytest.approx(0.6)
    for name in names:
        assert log_two[0][name] == pytest.approx(log_one[0][name], rel=1e-3, abs=1e-4), name


def test_no_view_on_any_rank(tmp_path):
    _, history = train(tmp_path / "two", 2, rows_with_view=[])
    assert history[0]["loss"] == 0.0 and history[0][f"{PREFIX}view_share"] == 0.0


@pytest.mark.parametrize("case", [{}, {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}], ids=str)
def test_tokens_are_recorded_by_all_processes(tmp_path, case):
    """Five rollouts, three of which one process records and two the other; all of them at eight."""
    options = {"rows_with_view": [*range(8)], "reward": True, "num_generations": 2, **case}
    for number, count in ((1, 8), (2, 8), (2, 5)):
        train(tmp_path / f"{number}-{count}", number, log_tokens=count, **options)
    one, two, some = (read(path_of(tmp_path / name, 1))[1] for name in ("1-8", "2-8", "2-5"))
    assert len(one) == len(two) == 8 and len(some) == 5
    assert len({line["index"] for line in some}) == 5
    for mine, other in zip(one, two, strict=True):
        for name in ("index", "group", "ids", "texts", "rewards", "success", "student_prompt"):
            assert mine[name] == other[name], name
        assert mine["p"] == pytest.approx(other["p"], rel=1e-2) and mine["entropy"] == pytest.approx(other["entropy"])
        (view,), (reference,) = mine["views"].values(), other["views"].values()
        assert view["prompt"] == reference["prompt"] and view["top"]["ids"] == reference["top"]["ids"]
        assert view["q"] == pytest.approx(reference["q"], rel=1e-2)
