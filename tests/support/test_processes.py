# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""When a test run is killed, every process that it has started ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import TESTS, search_path
from processes import end_with_parent


WORKER = TESTS / "distributed" / "sleeping_worker.py"
# As pytest does in a test: waits for what it has launched
RUN = "import sys; from pathlib import Path; from launch import launch; launch(Path(sys.argv[1]), sys.argv[2], {})"


def becomes_true(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descendants(process: int) -> list[int]:
    """All processes below one, by what the system says."""
    files = Path(f"/proc/{process}/task").glob("*/children")
    children = [int(child) for file in files for child in file.read_text().split()]
    return children + [other for child in children for other in descendants(child)]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to end the children")
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=lambda by: by.name)
@pytest.mark.parametrize(("processes", "started"), [(1, 2), (2, 5)])
def test_no_process_outlives_a_killed_run(tmp_path, processes, started, by):
    """Alone a rank and its child; in two processes torchrun, two ranks and a child of each."""
    environment = {**os.environ, "PYTHONPATH": search_path()}
    code = RUN.format(f"processes={processes}, seconds=300")
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(WORKER), str(tmp_path)], env=environment, preexec_fn=end_with_parent
    )
    try:
        assert becomes_true(lambda: len(list(tmp_path.iterdir())) == processes, 120)
        begun = descendants(run.pid)
        assert len(begun) >= started and all(map(runs, begun))
    finally:
        run.send_signal(by)
        run.wait()
    assert becomes_true(lambda: not any(map(runs, begun)), 20), [one for one in begun if runs(one)]
