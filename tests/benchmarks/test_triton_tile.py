# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The hand-written Triton kernel, a yardstick of the GPU check, against the float64 reference of the tests."""

import json
import os
import sys

import pytest

import processes
from launch import SUPPORT, search_path


pytest.importorskip("triton")

KINDS = ("forward_kl", "reverse_kl", "jsd")
GRADIENT = {"float32": 5e-6, "bfloat16": 4e-3, "float16": 5e-4}  # which has that type
STATISTICS = {"student_logps", "student_entropy", "teacher_logps", "teacher_entropy", "divergence"}


@pytest.fixture(scope="module")
def errors() -> dict:
    environment = {**os.environ, "PYTHONPATH": search_path()}
    done = processes.run([sys.executable, str(SUPPORT / "triton_errors.py")], env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("dtype", GRADIENT)
@pytest.mark.parametrize("kind", KINDS)
def test_against_reference(errors, kind, dtype):
    found = dict(errors[kind][dtype])
    assert found.pop("gradient") < GRADIENT[dtype]
    assert found.keys() == STATISTICS and max(found.values()) < 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_agreement_gives_no_gradient(errors, kind):
    assert errors[kind]["agreement"] < 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_from_hidden_states(errors, kind):
    assert errors[kind]["whole loss"] < 1e-5
