# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Several commands in a row, each with the output of earlier ones: `trl-opsd phases`.

What is finished is not repeated, an interrupted training goes on from its last checkpoint, and the first failure ends
the list. Without a file, it lists those of the package.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from trl_opsd.cli import prune
from trl_opsd.cli.catalog import catalog
from trl_opsd.cli.errors import UserError
from trl_opsd.cli.recipe_check import check_given, check_spelling, check_value, read_recipe
from trl_opsd.cli.recipes import FOLDER, find_recipe, head
from trl_opsd.cli.tables import print_table
from trl_opsd.options import near
from trl_opsd.phases.phase_list import Phase, check_finished, phases_of, run_phases


LISTS = FOLDER / "phases"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", help="list of phases: a name or a YAML file")
    parser.add_argument("--output_dir", help="folder of the phases, instead of the list's own")
    parser.add_argument("--dry_run", action="store_true", help="check the list, and show what is finished")


def run(args: argparse.Namespace) -> None:
    """Run a list of phases, or list those that there are."""
    if args.file is None:
        names = sorted(path.stem for path in LISTS.glob("*.yaml"))
        print_table(("list", "about"), [(name, head(LISTS / f"{name}.yaml")[0].split(". ")[0]) for name in names])
        print("\nRun one: trl-opsd phases NAME")
        return
    phases = checked(find_list(args.file), args.output_dir)
    if args.dry_run:
        rows = [
            (str(one.number), one.command, "finished" if one.is_finished else "", str(one.folder)) for one in phases
        ]
        print_table(("phase", "command", "", "folder"), rows)
        return
    if code := run_phases(phases, lambda phase: start(phase, len(phases))):
        failed = next(phase for phase in phases if not phase.is_finished)
        print(f"error: {failed.name} failed: see above. The same command goes on with it.", file=sys.stderr)
        sys.exit(code)
    print(f"All {len(phases)} phases are finished. The last one's output is in {phases[-1].folder}.")


def find_list(text: str) -> Path:
    """
    File of a list of phases: a path, or a name of the package's.

    Raises:
        UserError: If there is neither.
    """
    if Path(text).is_file():
        return Path(text)
    known = {path.stem: path for path in LISTS.glob("*.yaml")}
    name = text.removesuffix(".yaml").removeprefix("recipes/").removeprefix("phases/")
    if name not in known:
        raise UserError(f"{text} is neither a file nor a list of phases{near(name, known)}: see `trl-opsd phases`.")
    return known[name]


def checked(path: Path, output_dir: str | None) -> list[Phase]:
    """
    Phases of a file, of which none is run before all are checked.

    Raises:
        UserError: For the first mistake.
    """
    try:
        phases = phases_of(read_recipe(path), output_dir, options_in)
        check_finished(phases)
    except ValueError as error:
        raise UserError(str(error)) from error
    folders = {str(phase.folder) for phase in phases}
    for phase in phases:
        try:
            check_options(phase, folders)
        except UserError as error:
            raise UserError(f"{phase.name}: {error}") from error
    return phases


def options_in(command: str, config: str) -> dict[str, Any]:
    """Options in the config of a phase: a recipe, or a file of options of a command that has no recipes."""
    if command in ("collect", "train"):
        return read_recipe(find_recipe(config))
    if not Path(config).is_file():
        raise UserError(f"`config` of `{command}` is {config}, which is no file: name a YAML file of its options.")
    return read_recipe(config)


def check_options(phase: Phase, folders: set[str]) -> None:
    """Refuse misspelt options and values that can't be, as far as that is known before the phase runs."""
    for name in phase.launch:
        if name not in (known := {*catalog()["launch"], "accelerate_config"}):
            raise UserError(f"`launch`: `accelerate launch` has no option `{name}`{near(name, known)}.")
    if phase.command == "sft":
        check_sft(phase.options)
        return
    if phase.command == "prune":
        prune.check_options(phase.options)
        return
    check_spelling(phase.options, "its options")
    for name, value in phase.options.items():
        check_value(name, value)
    check_given(phase.options, made=folders)


def check_sft(options: dict[str, Any]) -> None:
    """Check the options of `trl sft`, which loads everything before it tells of a wrong one."""
    if not options.get("dataset_name") and not options.get("datasets"):
        raise UserError(
            "`dataset_name` is missing: that of rows that were collected is the folder of their phase, {1}."
        )
    if not options.get("model_name_or_path"):
        raise UserError("`model_name_or_path` is missing: name a folder or a Hub id.")
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

    kinds = (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig)
    known = {item.name for kind in kinds for item in fields(kind)}
    for name in options:
        if name not in known:
            raise UserError(f"`trl sft` has no option `{name}`{near(name, known)}.")


def start(phase: Phase, count: int) -> int:
    """Run a phase in a process of its own, and return its exit code."""
    print(f"Phase {phase.number} of {count}: {phase.command} -> {phase.folder}", flush=True)
    command = ["-m", "trl.cli.main"] if phase.command == "sft" else ["-m", "trl_opsd.cli.main"]
    line = [sys.executable, *command, phase.command, "--config", str(phase.file)]
    for name, value in phase.launch.items():
        line += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    if phase.command in ("sft", "train") and phase.checkpoint is not None:
        print(f"It goes on from {phase.checkpoint}.", flush=True)
        line += ["--resume_from_checkpoint", str(phase.checkpoint)]
    # The process imports this package, from a checkout too
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.run(line, env={**os.environ, "PYTHONPATH": path}).returncode
