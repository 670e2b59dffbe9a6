# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Model and data of the example recipes: `trl-opsd data`."""

import argparse
import os
import sys
from pathlib import Path

from trl_opsd.cli.errors import UserError
from trl_opsd.examples import smollm2
from trl_opsd.examples.data import FOLDER, NAMES, prepare


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task", choices=[*NAMES, "smollm2"], help="a task with its model, or SmolLM2-135M-Instruct alone"
    )
    parser.add_argument("--output_dir", type=Path, help=f"folder of the data; default: {FOLDER}/TASK")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of rows")


def run(args: argparse.Namespace) -> None:
    """Write the data of a task, and the model that its recipes train where it is not there yet."""
    if args.task == "smollm2" and args.output_dir:
        raise UserError("`--output_dir` is for data: the model's folder is that of the recipes.")
    if not sys.stderr.isatty():  # before tqdm is imported: the bar of GGUF files has no other switch
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        if args.task != "smollm2":
            print(f"The {args.task} task is in {prepare(args.task, args.output_dir, args.seed)}.")
        if args.task != "pictures":  # whose recipe is for a vision-language model
            if not smollm2.is_ready(smollm2.MODEL_DIR):
                print("Unpacking SmolLM2-135M-Instruct (once, about half a minute) ...", flush=True)
                from trl_opsd.cli.quiet import keep_quiet

                keep_quiet()
            print(f"SmolLM2-135M-Instruct is in {smollm2.prepare()}.")
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise UserError(str(error)) from error
