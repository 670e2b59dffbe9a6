# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Token report: what the teacher teaches, token by token. `trl-opsd report RUN`.

A run that trained with `log_tokens: 4` in its recipe has records of single tokens. They become one HTML file, which
opens in any browser and asks nothing of the network. With `--config` the records are made now: checkpoints of a recipe
answer the same prompts, such as `--config smollm2_json --checkpoint start demo/output/smollm2-json`.
"""

import argparse
from pathlib import Path

from trl_opsd.cli.errors import UserError, told
from trl_opsd.token_report.load import Group, RunLog, load_groups, load_log


PAGE = Path("report.html")
LARGE = 30e6  # characters of a page


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="`output_dir` of the run")
    parser.add_argument("--config", metavar="RECIPE", help="instead of a run: a recipe, for its checkpoints")
    parser.add_argument(
        "--checkpoint", nargs="+", metavar="FOLDER", help="their folders, and `start` for the weights it starts from"
    )
    parser.add_argument("--out", type=Path, help=f"file of the page; default: {PAGE}")
    parser.add_argument("--step", type=int, nargs="+", help="only these steps; default: all that were recorded")
    parser.add_argument("--rows", type=int, help="only the first rollouts of each step; of checkpoints 8 by default")
    parser.add_argument(
        "--no_context", action="store_true", help="leave teachers' prompts and contexts out, to share it"
    )
    parser.add_argument("--terminal", action="store_true", help="print it; with `--out` write the page too")


def run(args: argparse.Namespace) -> None:
    """Write the page, or print the report."""
    check(args)
    groups, log = of_run(args) if args.config is None else of_checkpoints(args)
    if args.terminal:
        try:
            from trl_opsd.token_report.terminal import print_report
        except ModuleNotFoundError as error:
            package = str(error.name).split(".")[0]
            raise UserError(f"`--terminal` needs the package {package}: pip install {package}") from error
        print_report(groups, log)
    if args.terminal and args.out is None:
        return
    from trl_opsd.token_report.page import build_page

    path = args.out or PAGE
    text = build_page(groups, log, context=not args.no_context)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"`--out`: {path} can't be written: {error.strerror}.") from error
    count = sum(len(group.rollouts) for group in groups)
    print(f"The report of {count} rollouts is in {path} ({len(text.encode()) / 1e6:.1f} MB).")
    if len(text) > LARGE:
        print("A browser needs long for that much: `--step` and `--rows` choose less.")
    if not args.no_context:
        print("It holds the teachers' prompts: `--no_context` leaves them out.")
    print(f"Open it in a browser: {path.resolve().as_uri()}")


def check(args: argparse.Namespace) -> None:
    """Refuse options that belong to the other kind of report."""
    if args.rows is not None and args.rows < 1:
        raise UserError(f"`--rows` must be at least 1 (got {args.rows}).")
    if (args.run is None) == (args.config is None):
        raise UserError("Name the `output_dir` of a run, or `--config` with a recipe and `--checkpoint`: one of them.")
    if (args.config is None) != (args.checkpoint is None):
        raise UserError("`--config` and `--checkpoint` belong together: a recipe, and the folders of its checkpoints.")
    if args.config is not None and args.step is not None:
        raise UserError("`--step` chooses among the records of a run; with `--config` name checkpoints.")


def of_run(args: argparse.Namespace) -> tuple[list[Group], RunLog]:
    """Records that a run has made."""
    try:
        log = load_log(args.run)
        return load_groups(args.run, log, args.step, args.rows), log
    except ValueError as error:
        raise UserError(str(error)) from error


def of_checkpoints(args: argparse.Namespace) -> tuple[list[Group], RunLog]:
    """Records of checkpoints, made now. Answers are sampled with transformers."""
    from trl_opsd.cli.recipe_check import check as check_recipe
    from trl_opsd.cli.recipe_check import spelled

    line = spelled(["--config", args.config, "--use_vllm", "false"])
    check_recipe(line)

    from trl_opsd.cli.arguments import parse
    from trl_opsd.cli.quiet import keep_quiet
    from trl_opsd.cli.train import MISTAKES, build_trainer, load_data
    from trl_opsd.diagnostics import checkpoint_tokens

    keep_quiet()
    with told(expected=MISTAKES):
        script_args, training_args, model_args, dataset_args = parse(line)
        trainer = build_trainer(script_args, training_args, model_args, load_data(script_args, dataset_args))
        groups = checkpoint_tokens(trainer, args.checkpoint, args.rows or 8)
    return groups, RunLog(Path(args.config).stem, options=training_args.to_dict())
