# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Starts the scripts of the tests that need processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from processes import end_with_parent


SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent


def search_path() -> str:
    """`PYTHONPATH` of a process that imports what test files import."""
    folders = [TESTS.parent, TESTS, SUPPORT, TESTS / "distributed"]
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


def launch(script: Path, *arguments: str, processes: int, seconds: int) -> None:
    """Run a script in one process, or under torchrun in several. A hang ends the whole process group, and so
    does the end of this process."""
    code, output = outcome(script, *arguments, processes=processes, seconds=seconds)
    assert code == 0, output[-6000:]


def outcome(script: Path, *arguments: str, processes: int, seconds: int) -> tuple[int, str]:
    """The same, for a run that is meant to fail: exit status and output."""
    command = [sys.executable, str(SUPPORT / "rank.py"), str(script), *arguments]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": search_path()}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True,
        preexec_fn=end_with_parent,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{processes} processes did not end in {seconds} s:\n{output[-3000:]}")
    return process.returncode, output
