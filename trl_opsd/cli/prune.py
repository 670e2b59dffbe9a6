# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
A model with fewer layers: the contiguous block that changes the hidden states least is left out. `trl-opsd prune`.

The result is an ordinary model, to be trained again: see docs/phases.md.
"""

import argparse
from pathlib import Path
from typing import Any

from trl_opsd.cli.errors import UserError
from trl_opsd.cli.recipe_check import check_folder, read_recipe
from trl_opsd.options import near


DEFAULTS = {"rows": 32, "max_length": 512, "dataset_train_split": "train"}
REQUIRED = ("model_name_or_path", "dataset_name", "layers", "output_dir")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_name_or_path", metavar="MODEL", help="a folder or a Hub id")
    parser.add_argument("--dataset_name", metavar="DATA", help="texts on which hidden states are compared")
    parser.add_argument("--dataset_train_split", metavar="SPLIT", help="split of it (default: train)")
    parser.add_argument("--layers", type=int, metavar="N", help="layers to leave out")
    parser.add_argument("--rows", type=int, metavar="N", help="rows that are read (default: 32)")
    parser.add_argument("--max_length", type=int, metavar="N", help="tokens of a row that are read (default: 512)")
    parser.add_argument("--output_dir", metavar="FOLDER", help="where the model goes")
    parser.add_argument("--config", metavar="FILE", help="YAML file of these options, which win over it")


def check_options(given: dict[str, Any]) -> dict[str, Any]:
    """
    Options with their defaults.

    Raises:
        UserError: For one that is missing or unknown, or no number of layers or rows.
    """
    for name in given:
        if name not in (known := (*REQUIRED, *DEFAULTS)):
            raise UserError(f"`trl-opsd prune` has no option `{name}`{near(name, known)}.")
    for name in REQUIRED:
        if given.get(name) is None:
            raise UserError(f"`{name}` is missing: see trl-opsd prune --help.")
    options = DEFAULTS | given
    for name, least in (("layers", 0), ("rows", 1), ("max_length", 1)):
        if not isinstance(options[name], int) or options[name] < least:
            raise UserError(f"`{name}` must be a whole number of at least {least}, got {options[name]!r}.")
    return options


def run(args: argparse.Namespace) -> None:
    """Prune a model and save it with its tokenizer."""
    given = {name: value for name, value in vars(args).items() if name in (*REQUIRED, *DEFAULTS) and value is not None}
    options = check_options((read_recipe(args.config) if args.config else {}) | given)
    for name in ("model_name_or_path", "dataset_name"):
        check_folder(name, options[name])
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trl_opsd.cli.quiet import keep_quiet
    from trl_opsd.phases.pruning import angular_distances, drop_layers, layers_of

    keep_quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(options["model_name_or_path"])
        model = AutoModelForCausalLM.from_pretrained(options["model_name_or_path"], dtype="auto").eval()
        count, block = len(layers_of(model)), options["layers"]
        distances = angular_distances(model, texts(options, tokenizer), block)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    order = distances.argsort().tolist()
    start = order[0]
    drop_layers(model, start, block)
    model.save_pretrained(options["output_dir"])
    tokenizer.save_pretrained(options["output_dir"])
    for number in order[:3]:
        print(f"Layers {number} to {number + block - 1}: angular distance {distances[number]:.4f}")
    what = f"layers {start} to {start + block - 1} of {count}" if block else "no layer"
    print(f"The model without {what} is in {Path(options['output_dir'])}.")


def texts(options: dict[str, Any], tokenizer: Any) -> list[list[int]]:
    """Token ids of the rows: those that were collected, or prompt and completion."""
    from datasets import load_dataset

    data = load_dataset(options["dataset_name"])
    split = options["dataset_train_split"]
    if split not in data:
        raise UserError(f"`dataset_train_split` is {split}, and the data has {', '.join(data)}.")
    rows = data[split]
    return [
        ids_of(row, tokenizer)[: options["max_length"]] for row in rows.select(range(min(options["rows"], len(rows))))
    ]


def ids_of(row: dict[str, Any], tokenizer: Any) -> list[int]:
    """Token ids of a row."""
    if row.get("input_ids"):
        return row["input_ids"]
    prompt = row.get("prompt") or row.get("text")
    if prompt is None:
        raise UserError(f"`dataset_name`: a row needs `prompt` or `text`, and has {', '.join(row)}.")
    completion = row.get("completion") or ""
    if isinstance(prompt, str):
        return list(tokenizer(prompt + (completion if isinstance(completion, str) else ""))["input_ids"])
    begins = not completion
    messages = [*prompt, *(completion or [])]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begins)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
