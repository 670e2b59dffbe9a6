# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The command `trl-opsd`. A command's module is imported when it is chosen, so that help and listings answer at once.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from trl_opsd import __version__
from trl_opsd.cli.errors import EXIT_CODE, TRACEBACK, told
from trl_opsd.options import near


COMMANDS = {
    "new": "write a recipe for data of your own",
    "estimate": "memory of a recipe or model on your GPUs, and what makes it fit",
    "preflight": "is a recipe worth training, and what does its teacher read?",
    "align": "does a recipe's loss move the student to better scores, token by token?",
    "train": "train from a recipe, by name or file",
    "collect": "sample rows for supervised fine-tuning by a recipe",
    "prune": "leave out the layers of a model that change its hidden states least",
    "phases": "run several commands in a row, with each other's output",
    "report": "see what the teacher of a run teaches, token by token",
    "chat": "talk to a model, beside another one or beside itself with a context",
    "recipes": "list the recipes; print or copy one",
    "methods": "list the published methods; print one's page",
    "sources": "list sources of contexts, and conditions; print one's page",
    "options": "search the options of a recipe",
    "data": "make model and data of the example recipes",
    "self_study": "write questions about a document, to train a prefix that holds it",
    "doctor": "versions, devices and disk, each with a remedy",
}
# Commands whose options are those of a recipe, and the module of each
OF_RECIPES = {
    "train": "launch",
    "preflight": "preflight",
    "align": "align",
    "estimate": "estimate",
    "collect": "collect",
}
EPILOG = """examples:
  trl-opsd data json                              model and data of the demo
  trl-opsd preflight --config smollm2_json        see what its teacher reads, and both answers
  trl-opsd train --config smollm2_json            train, in minutes on a CPU
  trl-opsd train --config smollm2_json --log_tokens 4 && trl-opsd report demo/output/smollm2-json
  trl-opsd chat demo/output/smollm2-json --beside demo/models/smollm2-135m
"""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Parser of the command line, with the options of one command alone."""
    parser = argparse.ArgumentParser(
        prog="trl-opsd",
        description="On-policy self-distillation of language models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trl-opsd {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    names = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        own = name == command and name not in OF_RECIPES
        module = importlib.import_module(f"trl_opsd.cli.{name}") if own else None
        about = module.__doc__.strip() if module else text
        one = names.add_parser(name, help=text, description=about, add_help=name not in OF_RECIPES,
                               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        if module:
            module.add_options(one)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name. A reader that leaves early, such as `head`, and Ctrl-C are no errors."""
    try:
        run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at exit
    except (EOFError, KeyboardInterrupt):
        sys.exit(130)


def run(argv: Sequence[str] | None) -> None:
    """Run a command; its errors are the caller's to tell."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--traceback" in argv:
        os.environ[TRACEBACK] = "1"
        argv = [text for text in argv if text != "--traceback"]
    command = next((text for text in argv if not text.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        print(f"error: there is no command {command!r}{near(command, COMMANDS)}: see trl-opsd --help", file=sys.stderr)
        sys.exit(EXIT_CODE)
    with told():
        if command in OF_RECIPES:  # a parser of its own, with the options of TRL and transformers
            module = importlib.import_module(f"trl_opsd.cli.{OF_RECIPES[command]}")
            module.run(argv[argv.index(command) + 1 :])
            return
        parser = build_parser(command)
        args = parser.parse_args(argv)
        if command is None:
            parser.print_help()
        else:
            importlib.import_module(f"trl_opsd.cli.{command}").run(args)


if __name__ == "__main__":
    main()
