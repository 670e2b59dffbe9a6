# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Published methods, as a table or one by one: `trl-opsd methods`."""

import argparse
import json
from typing import Any

from trl_opsd.cli.catalog import catalog
from trl_opsd.cli.errors import UserError
from trl_opsd.cli.recipes import recipe_names
from trl_opsd.cli.tables import print_table, print_text
from trl_opsd.options import near


NEEDS = ("reward", "column", "nothing")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="print this method's page")
    parser.add_argument("--needs", choices=NEEDS, help="only those that need a reward, a column but no reward, neither")


def kind_of_need(method: dict[str, Any]) -> str:
    """Class of a method's needs: `reward`, `column` or `nothing`."""
    if method["needs_reward"] or method["needs"].startswith("a reward"):
        return "reward"
    return "column" if "column" in method["needs"] else "nothing"


def run(args: argparse.Namespace) -> None:
    """List the methods, or print one's page."""
    methods = catalog()["methods"]
    if args.name is None:
        chosen = {name: one for name, one in methods.items() if args.needs in (None, kind_of_need(one))}
        print_table(("method", "needs", "idea"), [(name, kind_of_need(m), m["summary"]) for name, m in chosen.items()])
        print("\nUse one: `method: NAME` in a recipe. Its page: trl-opsd methods NAME.")
        return
    if args.name not in methods:
        raise UserError(f"there is no method {args.name!r}{near(args.name, methods)}: `trl-opsd methods` lists them.")
    method = methods[args.name]
    address = f"https://arxiv.org/abs/{method['paper']}" if method["on_arxiv"] else method["paper"]
    by = f", by {method['authors'].replace(' and ', ', ')}" if method["authors"] else ""
    print_text(f"{args.name}: {method['title']}{by}. {address}")
    print_text(f"Label: {method['label']}. Needs {method['needs']}.")
    print(f"\n{method['text']}\n")
    for title, values in (("Values that it sets", method["defaults"]), ("method_options", method["options"])):
        if values:
            print(f"{title}:")
            for option, value in values.items():
                print(f"  {option}: {json.dumps(value, ensure_ascii=False)}")
    recipes = [name for name in recipe_names() if name in (f"methods/{args.name}", f"methods/{args.name}_paper")]
    print(f"Recipes: {', '.join(recipes)}")
