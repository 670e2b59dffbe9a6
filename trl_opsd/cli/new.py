# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Recipe for data of your own: `trl-opsd new`.

It finds the columns, chooses words around the context, lengths and a batch, and writes a commented file to edit.
"""

import argparse
import importlib.util
import math
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from trl_opsd.cli.errors import UserError
from trl_opsd.cli.own_data.columns import context_of, prompt_of
from trl_opsd.cli.own_data.plan import plan
from trl_opsd.cli.own_data.reading import check_place, read
from trl_opsd.cli.own_data.recipe_text import text_of
from trl_opsd.cli.planned_run.remedy_lines import launch_line
from trl_opsd.cli.recipe_check import check_folder, check_rewards
from trl_opsd.cli.tables import print_text
from trl_opsd.memory import MODELS, NO, Run, Verdict, gb


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


def check(args: argparse.Namespace, output: Path) -> None:
    """
    Refuse what cannot work, before anything heavy is imported.

    Raises:
        UserError: For the first mistake.
    """
    if output.exists():
        raise UserError(f"`--output` is {output}, which exists already: name another file by `--output FILE`.")
    if args.gpus is not None and args.gpus < 0:
        raise UserError(f"`--gpus` must be 0 or more, got {args.gpus}.")
    if not 0 < args.gpu_gb < math.inf:
        raise UserError(f"`--gpu_gb` must be above 0, got {args.gpu_gb:g}.")
    check_place(args.data)
    check_folder("model_name_or_path", args.model)
    if args.model.lower() in MODELS and not Path(args.model).is_dir():
        raise UserError(f"`--model` is {args.model}: name a folder or a Hub id, such as Qwen/{args.model.title()}.")
    if args.reward:
        check_reward_path(args.reward)


def run(args: argparse.Namespace) -> None:
    """Write a recipe, and say what comes next."""
    name = Path(args.data).expanduser().resolve().stem
    output = args.output or Path(f"{name}.yaml")
    check(args, output)
    gpus = gpus_here() if args.gpus is None else args.gpus
    data = read(args.data, args.dataset_config)
    prompt = prompt_of(data, args.prompt)
    context = context_of(data, args.context, prompt.name)
    planned = plan(data, prompt, context, args.model, args.reward, gpus, args.gpu_gb, name)
    config = ["--config", str(output)]
    following = {
        f"trl-opsd train {shlex.join(config)} --dry_run": "what it would train, and both prompts",
        f"trl-opsd preflight {shlex.join(config)}": "is it worth training?",
        launch_line(planned.run, config): "train",
    }
    head = f"Recipe for {args.data}, written by `trl-opsd new`: every line is yours to change."
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text_of(planned.recipe, head, list(following)), encoding="utf-8")

    print(f"The recipe is in {output}: the student reads `{prompt.name}`, the teacher `{context.name}` too.")
    if planned.run and planned.verdict:
        print_memory(planned.run, planned.verdict, config)
    if planned.note:
        print_text(planned.note)
    widest = max(map(len, following))
    print("\nRead it, then:\n\n" + "\n".join(f"{line:<{widest}}  # {what}" for line, what in following.items()))


def print_memory(planned: Run, verdict: Verdict, config: list[str]) -> None:
    """Print the computed peak, and the command that shows its parts."""
    fits = "does not fit" if verdict.fits == NO else "fits"
    print(f"Computed: {gb(verdict.peak)} GB at the peak, of {planned.gpu_gb:g} GB on each GPU; it {fits}. The parts:\n")
    command = ["trl-opsd", "estimate", *config, "--gpus", str(planned.gpus), "--gpu_gb", f"{planned.gpu_gb:g}"]
    command += ["--prompt_tokens", str(planned.prompt)]
    command += ["--context_tokens", str(planned.teacher_prompt - planned.prompt)]
    if planned.engine != "none":
        command += ["--accelerate_config", planned.engine]
    print(shlex.join(command))
