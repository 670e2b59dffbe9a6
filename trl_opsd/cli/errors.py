# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Mistakes of a user: one sentence on stderr and exit code 2, without a traceback."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator


EXIT_CODE = 2
# Set where tracebacks are asked for: processes that accelerate starts inherit it
TRACEBACK = "TRL_OPSD_TRACEBACK"


class UserError(ValueError):
    """Mistake in a command line, recipe or data set, in one sentence that says what to do."""


@contextlib.contextmanager
def told(expected: tuple[type[Exception], ...] = (UserError,)) -> Iterator[None]:
    """
    Turn expected errors into one paragraph, from the main process alone, and exit code 2.

    Args:
        expected (`tuple[type[Exception], ...]`): Errors that are the user's to mend.
    """
    try:
        yield
    except expected as error:
        if int(os.environ.get("RANK", 0)) == 0:
            if os.environ.get(TRACEBACK):
                traceback.print_exc()
            text = " ".join(str(error).split()) or type(error).__name__
            print(f"error: {text}", file=sys.stderr)
        sys.exit(EXIT_CODE)
