# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Gradient alignment of a recipe: does its loss move the student to better scores, token by token? `trl-opsd align`.

At some tokens the student is made to take each of its likeliest tokens and goes on from there. No weight changes.
"""

from collections.abc import Sequence

from trl_opsd.cli import launch, preflight


HELP = """usage: trl-opsd align --config RECIPE [--rows N] [--score NAME] [--json] [--OPTION VALUE ...]

  --config RECIPE              a recipe by name (trl-opsd recipes) or file; contexts to compare with its own are its
                               `preflight_sources`
  --rows N                     rows of the training set, 8 by default
  --nodes N                    tokens of each rollout, 4 by default
  --candidates N               most tokens to try in the place of each, 4 by default
  --samples N                  texts that are written from each, an even number, 8 by default
  --score NAME                 score function by dotted path, or a name of trl.rewards; by default the recipe's
                               `score_func` or its rewards
  --json                       print all figures as JSON
  --OPTION VALUE               any option of a recipe, as with trl-opsd train"""
# Options of this command, by their names in a recipe
NAMES = {
    **{f"--{name}": f"--align_{name}" for name in ("rows", "nodes", "candidates", "samples", "json")},
    "--score": "--score_func",
}


def run(argv: Sequence[str]) -> None:
    """Run the measurement as a training that stops before its first step."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return
    launch.run([*preflight.named(argv, NAMES), "--align"])
