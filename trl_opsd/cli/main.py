# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Command line of the package:

trl-opsd train --config RECIPE
trl-opsd methods

Training in several processes: `accelerate launch -m trl_opsd.cli.train --config RECIPE`.
"""

import sys
from collections.abc import Sequence

from trl_opsd.cli import methods, train


COMMANDS = {"train": train.run, "methods": methods.run}
USAGE = """usage: trl-opsd COMMAND [options]

  train      train from a recipe: --config RECIPE, and options that win over it; --help lists them
  methods    list the methods, with their papers and what they need"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names; the others are its own."""
    command, *rest = list(sys.argv[1:] if args is None else args) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
    elif command in COMMANDS:
        COMMANDS[command](rest)
    else:
        sys.exit(f"error: {command!r} is no command.\n{USAGE}")


if __name__ == "__main__":
    main()
