# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Pre-flight of a recipe: is a training worth it, and what does the teacher read? `trl-opsd preflight`.

Student and teacher answer rows of the training set, and no weight changes. Three rows are shown with both answers.
"""

from collections.abc import Mapping, Sequence

from trl_opsd.cli import launch


HELP = """usage: trl-opsd preflight --config RECIPE [--rows N] [--score NAME] [--json] [--OPTION VALUE ...]

  --config RECIPE              a recipe by name (trl-opsd recipes) or file
  --rows N                     rows of the training set, 32 by default
  --score NAME                 score function by dotted path, or a name of trl.rewards; by default the recipe's
                               `score_func` or its rewards
  --preflight_temperature T    of the answers, 0 for greedy ones; by default that of training
  --json                       print figures and whole texts as JSON
  --OPTION VALUE               any option of a recipe, and of `accelerate launch`, as with trl-opsd train"""
# Options of this command, by their names in a recipe
NAMES = {"--rows": "--preflight_rows", "--score": "--score_func", "--json": "--preflight_json"}


def run(argv: Sequence[str]) -> None:
    """Run the pre-flight as a training that stops before its first step."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return
    launch.run([*named(argv), "--preflight"])


def named(argv: Sequence[str], names: Mapping[str, str] = NAMES) -> list[str]:
    """Command line with the options of a command by their names in a recipe."""
    parts = [text.partition("=") for text in argv]
    return [names.get(name, name) + equals + value for name, equals, value in parts]
