# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Completions from a real, colocated vLLM.

Training runs in float32, and vLLM by default in half precision, on GPUs as here. So the two never agree to the last
digit: the log-probabilities of this model differ by about 0.01.
"""

import importlib.util
import json
from pathlib import Path

import pytest

from launch import launch


pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: `make test-engines`")

AGREEMENT = 0.03
WORKER = Path(__file__).parent / "vllm_colocate_worker.py"


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colocate")
    launch(WORKER, str(folder), processes=1, seconds=240)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("run", ["full", "lora", "grpo"])
def test_the_sampler_follows_every_update(seen, run):
    """Before a sync vLLM disagrees with the weights just updated, after it no more. The model's head is tied."""
    first, *later = seen[run]
    assert first[0] < AGREEMENT or run == "lora"  # this adapter changes the model from the start
    assert len(later) >= 2
    assert all(stale > 3 * AGREEMENT for stale, _ in later), seen[run]
    assert all(synced < AGREEMENT for _, synced in seen[run]), seen[run]


def test_trls_metrics_say_the_same(seen):
    steps = [log for log in seen["history"] if "loss" in log]
    assert len(steps) == 3
    assert all(log["sampling/sampling_logp_difference/mean"] < AGREEMENT for log in steps)
    assert any("eval_loss" in log for log in seen["history"])


def test_evaluations_draw_the_same_numbers(seen):
    first, second = seen["evaluations"]
    assert first == pytest.approx(second, rel=1e-6) and first > 0


def test_privileged_contexts_do_not_count_for_vllms_length(seen):
    """vLLM's context is 80 tokens; the teacher reads more."""
    assert all(log["self_distillation/teacher_prompt_length/max"] > 80 for log in seen["history"] if "loss" in log)
    assert "Row 5 of `train_dataset`: the student's prompt has" in seen["overlong"]
    assert "`vllm_max_model_length=80`" in seen["overlong"]
    assert "privileged contexts do not count" in seen["overlong"]


def test_no_request_holds_a_privileged_context(seen):
    asked = [text.split("<|im_start|>user\n")[1] for text in seen["requests"]]
    wanted = {f"What is {i}?<|im_end|>\n<|im_start|>assistant\n" for i in range(16)}
    assert len(asked) > 16 and set(asked) <= wanted, "the student's prompt, and nothing after it"
    assert not any(word in text for text in seen["requests"] for word in ("The answer", "It is long"))


def test_a_sampler_that_lags_behind_is_corrected_for(seen):
    """With the sync switched off and the trainer's weights moved, against the ratio of vLLM's own log-probabilities."""
    run = seen["unsynced"]
    assert run["mean_distance_of_ratio_from_1"] > 0.1
    assert abs(run["uncorrected"] / run["expected"] - 1) > 20e-4, "or the next line can't tell"
    assert run["loss"] == pytest.approx(run["expected"], rel=1e-4)


def test_a_merged_adapter_is_taken_out_again(seen):
    assert seen["lora_base_moved"] < 1e-5


def test_sleep_mode_reaches_vllm_which_has_none_on_a_cpu(seen):
    assert "Sleep mode is not supported on current platform" in seen["sleep_mode"]


def test_turns_are_sampled_in_two_calls(seen):
    """Of equal size whatever the units do; rows that were not sampled under their prompt have no ratio to vLLM."""
    run = seen["turns"]
    assert run["calls"][:2] == [4, 4] and set(run["calls"]) == {4}
    assert run["known"].keys() == {"first", "second", "distil"}, "idle rows have left the micro-batch"
    for role, rows in run["known"].items():
        for unknown, tokens, is_one in rows:
            assert unknown == (0 if role in ("first", "second") else tokens), role
            assert is_one == (role == "distil"), role
    losses = [log["loss"] for log in run["history"] if "loss" in log]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    assert "`max_completion_length=8` that is more than `vllm_max_model_length=80`. Raise it" in seen["turn too long"]
