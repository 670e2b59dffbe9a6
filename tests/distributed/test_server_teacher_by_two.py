# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Two processes with a teacher on a server: each asks for its own rows, and an error of one ends both."""

import json
from pathlib import Path

import pytest
import torch

import tiny
from endpoint_server import sends
from launch import launch
from scoring_server import refuses, scoring


WORKER = Path(__file__).parent / "server_teacher_worker.py"
LIMIT_SECONDS = 240
LOSSES = {
    "views on one rank alone": {
        "rows_with_view": [5, 6, 7], "distillation_mode": "topk_logits", "distillation_topk": 6,
        "distillation_topk_source": "teacher", "distillation_add_tail": True,
        "privileged_source": {"column": {"column": "privileged_context"}},
    },
    "sampled token": {"rows_with_view": [0, 5], "distillation_mode": "sampled_token", "distillation_alpha": 1.0},
}  # fmt: skip


@pytest.fixture
def server():
    tokenizer = tiny.tokenizer()
    with scoring(tiny.model(tokenizer, seed=7), tokenizer) as server:
        yield server


def train(folder, server, processes, **options):
    folder.mkdir()
    options |= {"teacher_model_kind": "server", "teacher_model_server_url": server.url}
    options |= {"per_device_train_batch_size": 8 // processes, "per_device_eval_batch_size": 8 // processes}
    launch(WORKER, str(folder), json.dumps(options), processes=processes, seconds=LIMIT_SECONDS)
    return [json.loads(path.read_text()) for path in sorted(folder.glob("error-*.json"))]


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_equal_one(tmp_path, server, name):
    for processes in (1, 2):
        assert not train(tmp_path / str(processes), server, processes, **LOSSES[name])
    one, two = ([torch.load(tmp_path / str(n) / f"weights-{rank}.pt") for rank in range(n)] for n in (1, 2))
    for parameter, tensor in two[0].items():
        assert torch.equal(tensor, two[1][parameter])
        torch.testing.assert_close(tensor, one[0][parameter], rtol=1e-3, atol=1e-5)
    logs = [json.loads((tmp_path / str(n) / "history.json").read_text())[0] for n in (1, 2)]
    for key in [key for key in logs[0] if "self_distillation" in key and "wait_seconds" not in key]:
        assert logs[1][key] == pytest.approx(logs[0][key], rel=1e-3, abs=1e-4), key
    sent = [json.loads((tmp_path / str(n) / f"sent-{rank}.json").read_text()) for n in (1, 2) for rank in range(n)]
    # Each row is asked for once, by the rank that has it
    assert sorted(sent[0]) == sorted(sent[1] + sent[2])
    assert all(sent[1:]) or "one rank" in name


def test_an_error_of_one_process_ends_both(tmp_path, server):
    """The fifth request for scores after those of the check is refused; whose it is, nobody knows."""
    scored, inner = 2 * 3, server.reply

    def reply(path, body):
        if len(server.scored) == scored + 5 and "prompt_logprobs" in body:
            return refuses(400, "This model's maximum context length is 8 tokens.")
        return inner(path, body)

    server.reply = reply
    errors = train(tmp_path / "run", server, 2, **LOSSES["sampled token"])
    assert sorted(error["kind"] for error in errors) == ["RuntimeError", "ServerError"]
    assert all("maximum context length is 8" in error["text"] for error in errors)
    (other,) = (error["text"] for error in errors if error["kind"] == "RuntimeError")
    assert "Another process failed" in other and "the teacher's server on process" in other


def test_a_dead_server_ends_both_at_the_start(tmp_path, server):
    server.always = sends(503, "starting")
    folder = tmp_path / "run"
    with pytest.raises(AssertionError, match="503: starting"):
        train(folder, server, 2, **{**LOSSES["sampled token"], "teacher_server_options": {"retries": 1}})
