# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Recipes and launch configs of the package, by name: `trl-opsd recipes`."""

import argparse
import shutil
from importlib.util import find_spec
from pathlib import Path

from trl_opsd.cli.errors import UserError
from trl_opsd.cli.tables import print_table
from trl_opsd.options import near


FOLDER = Path(__file__).parents[1] / "recipes"
LAUNCH = FOLDER / "accelerate"


def recipe_names() -> list[str]:
    """Names of the recipes: `smollm2_json`, `methods/rlsd`."""
    files = [path.relative_to(FOLDER) for folder in (FOLDER, FOLDER / "methods") for path in folder.glob("*.yaml")]
    return sorted((path.with_suffix("").as_posix() for path in files), key=lambda name: ("/" in name, name))


def find_recipe(text: str) -> Path:
    """
    File of a recipe: a path, or a name of the package's.

    Raises:
        UserError: If there is neither.
    """
    if Path(text).is_file():
        return Path(text)
    name = text.removesuffix(".yaml").removeprefix("recipes/")
    for known in (name, f"methods/{name}"):
        if known in recipe_names():
            return FOLDER / f"{known}.yaml"
    advice = near(name, recipe_names()) or near(f"methods/{name}", recipe_names())
    raise UserError(f"`--config` is {text}: neither a file nor a recipe{advice}. `trl-opsd recipes` lists them.")


def find_launch_config(text: str) -> Path:
    """
    File of an accelerate config: a path, or a name of the package's or of TRL's.

    Raises:
        UserError: If there is neither.
    """
    if Path(text).is_file():
        return Path(text)
    trl = Path(find_spec("trl").origin).parent / "accelerate_configs"
    known = {path.stem: path for folder in (trl, LAUNCH) for path in folder.glob("*.yaml")}
    if text in known:
        return known[text]
    names = sorted(known)
    raise UserError(
        f"`--accelerate_config` is {text}: neither a file nor one of {', '.join(names)}{near(text, names)}."
    )


def head(path: Path) -> list[str]:
    """Paragraphs of the comment at the top of a recipe."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return [" ".join(part.split()) for part in "\n".join(lines).split("\n\n")]


def summary(name: str) -> tuple[str, str, str, str]:
    """Row of the table: name, device, whether there is a reward, first sentence."""
    path = FOLDER / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    device = "CPU" if "\nmodel_name_or_path: demo/" in text else "GPU"
    reward = "yes" if "\nreward_funcs:" in text or "\nenvironment_factory:" in text else ""
    sentences = [sentence for sentence in head(path)[0].split(". ") if not sentence.startswith("Not run here")]
    return name, device, reward, sentences[0].rstrip(".") + "." if sentences else ""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="print this recipe")
    parser.add_argument("--copy", metavar="FILE", type=Path, help="copy it to a file of your own")


def run(args: argparse.Namespace) -> None:
    """List the recipes, print one or copy it."""
    if args.name is None:
        if args.copy:
            raise UserError("`--copy` needs the name of a recipe: `trl-opsd recipes NAME --copy FILE`.")
        names = recipe_names()
        print_table(("recipe", "on", "reward", "about"), [summary(name) for name in names])
        print("\nTrain with one: trl-opsd train --config NAME. Those for GPUs were not run.")
        return
    path = find_recipe(args.name)
    if args.copy is None:
        print(path.read_text(encoding="utf-8"), end="")
        return
    if args.copy.exists():
        raise UserError(f"`--copy` is {args.copy}, which exists already: name another file.")
    args.copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, args.copy)
    print(f"The recipe is in {args.copy}. Next: trl-opsd train --config {args.copy}")
