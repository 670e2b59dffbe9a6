# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Every method in two gloo processes, each with half of a group: what one process gives."""

import json
import math
from pathlib import Path

import pytest
import torch

from launch import launch
from method_cases import WITHOUT_TURNS


WORKER = Path(__file__).parent / "methods_worker.py"
LIMIT_SECONDS = 400
# Their means, quantiles or noise are of a micro-batch, as their docs say, and that is another one here
OF_A_MICRO_BATCH = {"dasd", "reopold", "rlcsd", "srpo", "tsd_kd", "unisd"}
# Their views need what a tiny model can't write, or turns with tools: without a view they are their policy loss
WITHOUT_VIEWS = {"feedback_alignment", "skill_sd", "targeted_hint"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of what each number of processes trained."""
    folders = {}
    for processes in (1, 2):
        folders[processes] = tmp_path_factory.mktemp(f"of{processes}")
        names = json.dumps(WITHOUT_TURNS)
        launch(WORKER, str(folders[processes]), names, processes=processes, seconds=LIMIT_SECONDS)
    return folders


@pytest.mark.parametrize("method", WITHOUT_TURNS)
def test_two_processes_equal_one(trained, method):
    expected, log = torch.load(trained[1] / f"{method}-0.pt")
    first, log_of_two = torch.load(trained[2] / f"{method}-0.pt")
    second, _ = torch.load(trained[2] / f"{method}-1.pt")
    for name in first:
        assert torch.equal(first[name], second[name]), f"{name} differs between the ranks"
    views = [entry["self_distillation/view_share"] for entry in log[:2]]
    assert views == [entry["self_distillation/view_share"] for entry in log_of_two[:2]]
    assert any(views) != (method in WITHOUT_VIEWS)
    losses, losses_of_two = ([entry["loss"] for entry in one[:2]] for one in (log, log_of_two))
    if method in OF_A_MICRO_BATCH:
        assert all(math.isfinite(loss) for loss in losses + losses_of_two)
        return
    assert losses_of_two == pytest.approx(losses, rel=1e-3, abs=1e-5)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
