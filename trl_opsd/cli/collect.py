# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Rows for supervised fine-tuning, sampled by a recipe's own path: `trl-opsd collect`.

They are rollouts of the student, or answers that are written with the context in view, with their exact token ids.
"""

from collections.abc import Sequence

from trl_opsd.cli import launch, preflight
from trl_opsd.cli.errors import UserError


HELP = """usage: trl-opsd collect --config RECIPE [--rows N] [--layout NAME ...] [--keep CONDITION ...]

  --config RECIPE        a recipe by name (trl-opsd recipes) or file
  --rows N               rows of the training set, by default each once
  --layout NAME ...      rows that are made of the samples, `answer` by default:
                           answer      the student's rollout after its prompt
                           distil      the answer with the context in view, after the student's prompt
                           revision    that answer after all that was read for it
                           generation  the context and that answer after the student's prompt
  --keep CONDITION ...   what is kept: no_leak, not_truncated, unique, and the conditions of trl-opsd sources
  --view NAME            view of the answers with the context in view, where the source gives several
  --output_dir FOLDER    the rows go to FOLDER/_collected; `trl sft --dataset_name FOLDER` reads them
  --OPTION VALUE         any option of a recipe, and of `accelerate launch`, as with trl-opsd train"""
# Options of this command, by their names in a recipe
NAMES = {
    "--rows": "--collect_rows",
    "--layout": "--collect_layout",
    "--keep": "--collect_keep",
    "--view": "--collect_view",
}


def run(argv: Sequence[str]) -> None:
    """Collect as a training that stops before its first step."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return
    if "--preflight" in argv or "--dry_run" in argv:
        raise UserError("`--preflight` and `--dry_run` are those of trl-opsd train: leave them out.")
    launch.run([*preflight.named(argv, NAMES), "--collect"])
