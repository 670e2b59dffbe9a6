# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Sources of contexts and conditions on rollouts, as a table or one by one: `trl-opsd sources`."""

import argparse

from trl_opsd.cli.catalog import catalog
from trl_opsd.cli.errors import UserError
from trl_opsd.cli.tables import print_table
from trl_opsd.options import near


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="print the page of this source or condition")


def run(args: argparse.Namespace) -> None:
    """List sources and conditions, or print one's page."""
    kinds = {"source": catalog()["sources"], "condition": catalog()["conditions"]}
    if args.name is None:
        rows = [(name, kind, one["summary"]) for kind, known in kinds.items() for name, one in known.items()]
        print_table(("name", "kind", "gives"), rows)
        print("\nUse one: `privileged_source: NAME` in a recipe. Its options: trl-opsd sources NAME.")
        return
    found = [(kind, known[args.name]) for kind, known in kinds.items() if args.name in known]
    if not found:
        names = [name for known in kinds.values() for name in known]
        raise UserError(
            f"there is no source or condition {args.name!r}{near(args.name, names)}: `trl-opsd sources` lists them."
        )
    for kind, one in found:
        print(f"{args.name} ({kind})\n\n{one['text']}\n")
        for option, value in one["options"].items():
            print(f"  {option}: {value}")
