# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Two processes with a teacher on a server: each asks for its own rows, and an error of one ends both."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import tiny
from endpoint_server import sends
from launch import launch
from scoring_server import refuses, scoring


WORKER = Path(__file__).parent / "server_teacher_worker.py"
LIMIT_SECONDS = 600
pytestmark = pytest.mark.timeout(LIMIT_SECONDS + 60)
OF_CHECK = 2 * 3  # requests for scores before the training, of two ranks
REFUSED = OF_CHECK + 5
SAMPLED = {"rows_with_view": [0, 5], "distillation_mode": "sampled_token", "distillation_alpha": 1.0}
EQUAL = {
    "views on one rank alone": {
        "rows_with_view": [5, 6, 7], "distillation_mode": "topk_logits", "distillation_topk": 6,
        "distillation_topk_source": "teacher", "distillation_add_tail": True,
        "privileged_source": {"column": {"column": "privileged_context"}},
    },
    "sampled token": SAMPLED,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs, with servers of their own for those that fail."""
    folder, tokenizer = tmp_path_factory.mktemp("servers"), tiny.tokenizer()
    with ExitStack() as stack:
        sound, refusing, dead = (
            stack.enter_context(scoring(tiny.model(tokenizer, seed=7), tokenizer)) for _ in range(3)
        )
        dead.always = sends(503, "starting")
        inner = refusing.reply

        def reply(path, body):
            """One request is refused; whose it is, nobody knows."""
            is_one = "prompt_logprobs" in body and len(refusing.scored) >= REFUSED and not refusing.closing.is_set()
            if is_one:
                refusing.closing.set()
                return refuses(400, "This model's maximum context length is 8 tokens.")
            return inner(path, body)

        refusing.reply = reply
        given = {name: {**options, "processes": [1, 2], **on(sound)} for name, options in EQUAL.items()}
        given["refused"] = {**SAMPLED, "processes": [2], **on(refusing)}
        given["dead"] = {**SAMPLED, "processes": [2], **on(dead), "teacher_server_options": {"retries": 1}}
        launch(WORKER, str(folder), json.dumps(given), processes=1, seconds=LIMIT_SECONDS)
    return folder


def on(server):
    return {"teacher_model_kind": "server", "teacher_model_server_url": server.url}


def read(folder, name):
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*.json"))]


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_equal_one(runs, name):
    folders = [runs / name / str(processes) for processes in (1, 2)]
    assert not [error for folder in folders for error in read(folder, "error")]
    (one,), two = ([torch.load(path) for path in sorted(folder.glob("weights-*.pt"))] for folder in folders)
    for parameter, tensor in two[0].items():
        assert torch.equal(tensor, two[1][parameter])
        torch.testing.assert_close(tensor, one[parameter], rtol=1e-3, atol=1e-5)
    first, second = (read(folder, "history")[0][0] for folder in folders)
    keys = [key for key in first if "self_distillation" in key and "wait_seconds" not in key]
    assert {key: second[key] for key in keys} == pytest.approx({key: first[key] for key in keys}, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", EQUAL)
def test_each_row_is_asked_for_once_by_its_rank(runs, name):
    (one,), two = (read(runs / name / str(processes), "sent") for processes in (1, 2))
    assert one and sorted(one) == sorted(two[0] + two[1])
    assert all(two) or name == "views on one rank alone"


def test_an_error_of_one_process_ends_both(runs):
    errors = read(runs / "refused" / "2", "error")
    assert sorted(error["kind"] for error in errors) == ["RuntimeError", "ServerError"]
    assert all("maximum context length is 8" in error["text"] for error in errors)
    (other,) = (error["text"] for error in errors if error["kind"] == "RuntimeError")
    assert "Another process failed" in other and "the teacher's server on process" in other


def test_a_dead_server_ends_both_at_the_start(runs):
    errors = read(runs / "dead" / "2", "error")
    assert [error["kind"] for error in errors] == ["ValueError", "ValueError"]
    assert all("503: starting (after 1 retries)" in error["text"] for error in errors)
