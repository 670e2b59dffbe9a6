# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Runs a script of the tests as one rank: `rank.py script.py arguments`."""

import os
import runpy
import sys

from processes import end_with_parent


end_with_parent()  # before torch, which takes seconds to import

import torch  # noqa: E402


def main() -> None:
    """
    Run the script. One of several ranks then ends without a clean-up: gloo's threads now and then abort it there (torch
    2.13). A process of its own ends as ever, so a thread that would keep it alive is seen.
    """
    del sys.argv[0]
    sys.path[0] = os.path.dirname(sys.argv[0])
    torch.distributed.destroy_process_group = lambda *_: None  # part of the clean-up
    runpy.run_path(sys.argv[0], run_name="__main__")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
