# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Training from a recipe, launched through accelerate where there are several devices: `trl-opsd train`.

A recipe is checked before torch is imported. Options of the command line win over it, and those that only `accelerate
launch` knows, such as `--num_processes`, go there.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from trl_opsd.cli.catalog import catalog
from trl_opsd.cli.errors import UserError
from trl_opsd.cli.recipe_check import check, spelled
from trl_opsd.cli.recipes import find_launch_config


HELP = """usage: trl-opsd train --config RECIPE [--accelerate_config NAME] [--OPTION VALUE ...]

  --config RECIPE            a recipe by name (trl-opsd recipes) or file
  --accelerate_config NAME   a launch config by name (cpu, ddp, zero1, zero2, zero3, fsdp2, multi_node) or file
  --num_processes N          and other options of `accelerate launch`
  --dry_run                  check everything that needs no model, and print what the training would be
  --preflight                print whether training is worth it, and do not train
  --resume_from_checkpoint   true, or a folder: go on with an interrupted run
  --traceback                show the traceback of an error
  --OPTION VALUE             any option of a recipe, which wins over it (trl-opsd options WORD)"""


def run(argv: Sequence[str]) -> None:
    """Check the recipe and train, in this process or in those that accelerate starts."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return
    rehearses = "--dry_run" in (args := spelled(argv))
    launch, args = launch_options([text for text in args if text != "--dry_run"])
    check(args)
    if rehearses:
        from trl_opsd.cli import dry_run

        dry_run.run(args, launch, processes(launch))
    elif launch or several_devices():
        start(launch, args)
    else:
        from trl_opsd.cli import train

        train.run(args)


def launch_options(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of `accelerate launch` and those of the training; an option of both is the training's."""
    launch: list[str] = []
    own: list[str] = []
    texts = list(args)
    while texts:
        text = texts.pop(0)
        name = text.removeprefix("--")
        if text == "--accelerate_config":
            if not texts:
                raise UserError("`--accelerate_config` has no value: name a launch config or a file.")
            launch += ["--config_file", str(find_launch_config(texts.pop(0)))]
        elif text.startswith("--") and name in catalog()["launch"] and name not in catalog()["options"]:
            launch.append(text)
            if catalog()["launch"][name] and texts:
                launch.append(texts.pop(0))
        else:
            own.append(text)
    return launch, own


def processes(launch: Sequence[str]) -> int:
    """Number of processes that `accelerate launch` would start."""
    if "--num_processes" in launch:
        return int(launch[launch.index("--num_processes") + 1])
    if "--config_file" in launch:
        config = yaml.safe_load(Path(launch[launch.index("--config_file") + 1]).read_text(encoding="utf-8"))
        return int(config.get("num_processes", 1))
    from torch import accelerator

    return max(accelerator.device_count(), 1) if accelerator.is_available() else 1


def several_devices() -> bool:
    """Whether accelerate has to start several processes: for several devices, or as its own default config says."""
    from accelerate.commands.config.config_args import default_config_file
    from torch import accelerator

    return Path(default_config_file).is_file() or (accelerator.is_available() and accelerator.device_count() > 1)


def start(launch: Sequence[str], args: Sequence[str]) -> None:
    """Train in the processes of `accelerate launch`, and leave with the exit code of the first that failed."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The processes import this package, from a checkout too
    root = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        launch_command(launch_command_parser().parse_args(["--quiet", *launch, "-m", "trl_opsd.cli.train", *args]))
    except ChildFailedError as error:
        sys.exit(error.get_first_failure()[1].exitcode)
