# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One rank of tests/support/test_processes.py: starts a child, says so in a folder, and sleeps."""

import os
import sys
import time
from pathlib import Path

from processes import fork


def main(folder: Path) -> None:
    if fork():
        (folder / str(os.getpid())).touch()
    time.sleep(600)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
