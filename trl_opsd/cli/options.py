# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Options of a recipe, searched by a word, the package's own first: `trl-opsd options`."""

import argparse
from typing import Any

from trl_opsd.cli.catalog import catalog
from trl_opsd.cli.errors import UserError
from trl_opsd.cli.tables import print_table, print_text
from trl_opsd.options import near


ORIGINS = ("trl_opsd", "trl", "transformers")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("word", nargs="?", help="an option, or a word in a name or a help text; default: our own")


def matches(word: str | None) -> dict[str, dict[str, Any]]:
    """Options with the word in their name, else in their help text; the package's own without a word."""
    options = catalog()["options"]
    if word is None:
        return {name: one for name, one in options.items() if one["origin"] == "trl_opsd"}
    word = word.removeprefix("--").lower()
    if word in options:
        return {word: options[word]}
    named = {name: one for name, one in options.items() if word in name}
    found = named or {name: one for name, one in options.items() if word in one["help"].lower()}
    return dict(sorted(found.items(), key=lambda item: ORIGINS.index(item[1]["origin"])))


def run(args: argparse.Namespace) -> None:
    """Print one option whole, or a table of those that a word finds."""
    found = matches(args.word)
    if not found:
        advice = near(args.word, catalog()["options"])
        raise UserError(f"no option has {args.word!r} in its name or help text{advice}.")
    if len(found) == 1:
        ((name, one),) = found.items()
        print(f"{name} ({one['type']}, default {one['default']}; from {one['origin']})")
        if one["choices"]:
            print_text(f"one of {', '.join(map(str, one['choices']))}", "  ")
        print_text(one["help"], "  ")
        return
    rows = [(name, str(one["default"]), one["help"].split(". ")[0].rstrip(".") + ".") for name, one in found.items()]
    short = [(name, value if len(value) < 20 else value[:17] + "...", text) for name, value, text in rows]
    print_table(("option", "default", "about"), short)
    if args.word is None:
        print("\nThese are the package's own. `trl-opsd options WORD` searches those of TRL and transformers too.")
