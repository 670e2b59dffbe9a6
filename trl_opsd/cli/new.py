# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Recipe for data of your own: `trl-opsd new`.

It finds the columns, chooses words around the context, lengths and a batch, and writes a commented file to edit.
"""

import argparse
import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from trl_opsd.cli.errors import UserError
from trl_opsd.cli.own_columns import context_of, prompt_of
from trl_opsd.cli.own_data import check_place, read
from trl_opsd.cli.recipe_check import check_folder, check_rewards
from trl_opsd.cli.tables import print_text
from trl_opsd.memory import MODELS, NO, gb


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="a json, jsonl, csv or parquet file, a folder or a Hub id")
    parser.add_argument("--model", required=True, help="a folder or a Hub id")
    parser.add_argument("--prompt", metavar="COLUMN", help="what the student reads, if it is not found by its name")
    parser.add_argument("--context", metavar="COLUMN", help="what only the teacher reads, if it is not found so")
    parser.add_argument("--reward", metavar="PATH", help="a reward function, by its dotted path: my_module.my_reward")
    parser.add_argument("--gpus", type=int, help="GPUs to train on, 0 for the CPU; default: those of this machine")
    parser.add_argument("--gpu_gb", type=float, default=80.0, help="memory of a GPU, GB; default: 80")
    parser.add_argument("--dataset_config", metavar="NAME", help="config of a data set on the Hub")
    parser.add_argument("--output", metavar="FILE", type=Path, help="the recipe; default: named after the data")


def gpus_here() -> int:
    """Number of GPUs of this machine, as its driver tells it."""
    if shutil.which("nvidia-smi") is None:
        return 0
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def check_reward_path(path: str) -> None:
    """
    Refuse a reward whose module is not there. The dry run of the recipe imports it.

    Raises:
        UserError: Naming the module.
    """
    check_rewards(path)
    module = path.rpartition(".")[0]
    if not module:  # one of TRL's
        return
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise UserError(f"`--reward` is {path}, and there is no module {module} to import from here.")


def run(args: argparse.Namespace) -> None:
    """Write a recipe, and say what comes next."""
    name = Path(args.data).expanduser().resolve().stem
    output = args.output or Path(f"{name}.yaml")
    if output.exists():
        raise UserError(f"`--output` is {output}, which exists already: name another file by `--output FILE`.")
    if args.gpus is not None and args.gpus < 0:
        raise UserError(f"`--gpus` must be 0 or more, got {args.gpus}.")
    check_place(args.data)
    if not args.gpu_gb > 0:
        raise UserError(f"`--gpu_gb` must be above 0, got {args.gpu_gb:g}.")
    check_folder("model_name_or_path", args.model)
    if args.model.lower() in MODELS and not Path(args.model).is_dir():
        raise UserError(f"`--model` is {args.model}: name a folder or a Hub id, such as Qwen/{args.model.title()}.")
    if args.reward:
        check_reward_path(args.reward)
    gpus = gpus_here() if args.gpus is None else args.gpus
    data = read(args.data, args.dataset_config)
    prompt = prompt_of(data, args.prompt)
    context = context_of(data, args.context, prompt.name)

    from trl_opsd.cli.new_recipe import plan
    from trl_opsd.cli.recipe_text import text_of
    from trl_opsd.cli.remedy_lines import launch_line

    planned = plan(data, prompt, context, args.model, args.reward, gpus, args.gpu_gb, name)
    command = ["--config", str(output)]
    launch = launch_line(planned.run, command) if planned.run else f"trl-opsd train {shlex.join(command)}"
    name = shlex.join(command)
    following = {
        f"trl-opsd train {name} --dry_run": "what it would train, and both prompts",
        f"trl-opsd preflight {name}": "is it worth training?",
        launch: "train",
    }
    widest = max(map(len, following))
    lines = [f"{line:<{widest}}  # {what}" for line, what in following.items()]
    head = f"Recipe for {args.data}, written by `trl-opsd new`: every line is yours to change."
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text_of(planned.recipe, head, list(following)), encoding="utf-8")

    print(f"The recipe is in {output}: the student reads `{prompt.name}`, the teacher `{context.name}` too.")
    if planned.verdict:
        estimate = f"trl-opsd estimate {name} --gpus {gpus} --gpu_gb {args.gpu_gb:g}"
        if planned.run.engine != "none":
            estimate += f" --accelerate_config {planned.run.engine}"
        size, fits = planned.run.gpu_gb, "does not fit" if planned.verdict.fits == NO else "fits"
        print_text(
            f"Computed: {gb(planned.verdict.peak)} GB at the peak on each of {gpus} GPU(s) of {size:g} GB: "
            f"it {fits}. The parts: {estimate}"
        )
    if planned.note:
        print_text(planned.note)
    print("\nRead it, then:\n\n" + "\n".join(lines))
