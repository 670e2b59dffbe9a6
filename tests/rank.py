# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Runs a script of the tests as one rank: `rank.py script.py arguments`."""

import os
import runpy
import sys
from typing import NoReturn

import torch


def leave() -> NoReturn:
    """End a rank that has done its work. Without a clean-up: gloo's threads now and then abort one (torch 2.13)."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    del sys.argv[0]
    sys.path[0] = os.path.dirname(sys.argv[0])
    torch.distributed.destroy_process_group = lambda *_: None  # see `leave`
    runpy.run_path(sys.argv[0], run_name="__main__")
    leave()


if __name__ == "__main__":
    main()
