# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Processes of tests: they end with the one that started them, however that one ends; and a port for them."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from typing import Any


LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


def end_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """
    Let the system send this process a signal when its parent ends; nothing of the kind exists beyond Linux.

    Called by the child itself, as `preexec_fn` or after `os.fork`: a child of its own does not inherit it.

    Args:
        by (`signal.Signals`): SIGTERM for a launcher that then ends processes of its own.
    """
    if LIBC is None:
        return
    parent = os.getppid()
    LIBC.prctl(PR_SET_PDEATHSIG, int(by))
    if os.getppid() != parent:  # it ended in between
        os.kill(os.getpid(), by)


def end_launcher_with_parent() -> None:
    """For `accelerate launch`, a server, or another launcher that takes its own processes along on SIGTERM."""
    end_with_parent(signal.SIGTERM)


def fork() -> int:
    """`os.fork` of a child that ends with this process."""
    process = os.fork()
    if process == 0:
        end_with_parent()
    return process


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with the output as text, of a command that ends with this process."""
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=end_with_parent, **options)
