# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Starts the scripts of the tests that need processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent


def launch(script: Path, *arguments: str, processes: int, seconds: int) -> None:
    """Run a script in one process, or under torchrun in several. A hang ends the whole process group."""
    code, output = outcome(script, *arguments, processes=processes, seconds=seconds)
    assert code == 0, output[-6000:]


def outcome(script: Path, *arguments: str, processes: int, seconds: int) -> tuple[int, str]:
    """The same, for a run that is meant to fail: exit status and output."""
    command = [sys.executable, str(SUPPORT / "rank.py"), str(script), *arguments]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    folders = [str(TESTS / name) for name in (".", "support", "distributed", "privileged", "prompts", "trainer")]
    path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{processes} processes did not end in {seconds} s:\n{output[-3000:]}")
    return process.returncode, output
