# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Training from a recipe, launched through accelerate where there are several devices: `trl-opsd train`.

A recipe is checked before torch is imported. Options of the command line win over it, and those that only `accelerate
launch` knows, such as `--num_processes`, go there.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trl_opsd.cli.catalog import catalog
from trl_opsd.cli.errors import UserError
from trl_opsd.cli.hub_check import check_hub
from trl_opsd.cli.recipe_check import TRUTHS, check, spelled
from trl_opsd.cli.recipes import find_launch_config
from trl_opsd.conflicts import NO_BF16


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
    if argv and argv[0] in ("-h", "--help"):
        print(HELP)
        return
    if not argv:
        raise UserError("`--config` is missing: name a recipe (`trl-opsd recipes` lists them) or a file.")
    rehearses = "--dry_run" in (args := spelled(argv))
    launch, args = launch_options([text for text in args if text != "--dry_run"])
    given = check(args)
    check_hub(given)
    check_devices(given, launch)
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
    from accelerate.commands.config.config_args import default_config_file
    from torch import accelerator

    named = launch[launch.index("--config_file") + 1] if "--config_file" in launch else default_config_file
    if Path(named).is_file():
        return int(yaml.safe_load(Path(named).read_text(encoding="utf-8")).get("num_processes", 1))

    return max(accelerator.device_count(), 1) if accelerator.is_available() else 1


def check_devices(given: Mapping[str, Any], launch: Sequence[str]) -> None:
    """Refuse what the devices decide: bf16 where none computes in it, and batches that do not hold whole groups."""
    values = {name: option["default"] for name, option in catalog()["options"].items()}
    values |= catalog()["methods"].get(str(given.get("method")), {}).get("defaults", {}) | dict(given)
    if is_true(values["bf16"]) and not is_true(values["use_cpu"]):
        from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

        if not is_torch_bf16_gpu_available() and not is_torch_xla_available():
            raise UserError(NO_BF16)
    if values["num_generations"] is None or values["generation_batch_size"] is not None:
        return
    names = "per_device_train_batch_size", "num_generations", "gradient_accumulation_steps"
    of_device, group, steps = (int(float(values[name])) for name in names)
    steps, count = int(float(values["steps_per_generation"] or steps)), processes(launch)
    if group > 0 and (size := of_device * count * steps) % group:
        fitting = [number for number in range(2, size + 1) if size % number == 0]
        raise UserError(
            f"`num_generations` is {group}, and the {size} completions of a generation batch ({of_device} of "
            f"`per_device_train_batch_size` on {count} process(es), {steps} micro-batch(es)) can't be dealt in groups "
            f"of {group}: set it to {', '.join(map(str, fitting))}, or the batch size to a multiple of {group}."
        )


def is_true(value: Any) -> bool:
    """Whether an option is on, as a recipe or a command line writes it."""
    return str(value).lower() in TRUTHS[: len(TRUTHS) // 2]


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
