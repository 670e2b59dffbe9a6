# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Token report of a run: what the teacher teaches, token by token. `trl-opsd report RUN`.

A run that trained with `log_tokens: 4` in its recipe has records of single tokens. They become one HTML file, which
opens in any browser and asks nothing of the network.
"""

import argparse
from pathlib import Path

from trl_opsd.cli.errors import UserError
from trl_opsd.token_report.load import load_groups, load_log


PAGE = Path("report.html")
LARGE = 30e6  # characters of a page


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="`output_dir` of the run")
    parser.add_argument("--out", type=Path, help=f"file of the page; default: {PAGE}")
    parser.add_argument("--step", type=int, nargs="+", help="only these steps; default: all that were recorded")
    parser.add_argument("--rows", type=int, help="only the first rollouts of each step")
    parser.add_argument(
        "--no_context", action="store_true", help="leave teachers' prompts and contexts out, to share it"
    )
    parser.add_argument("--terminal", action="store_true", help="print it; with `--out` write the page too")


def run(args: argparse.Namespace) -> None:
    """Write the page, or print the report."""
    if args.rows is not None and args.rows < 1:
        raise UserError(f"`--rows` must be at least 1 (got {args.rows}).")
    try:
        log = load_log(args.run)
        groups = load_groups(args.run, log, args.step, args.rows)
    except ValueError as error:
        raise UserError(str(error)) from error
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
