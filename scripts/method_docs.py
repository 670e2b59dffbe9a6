# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
docs/methods.md, made of the methods' docstrings and fields:

python scripts/method_docs.py
"""

import importlib
import json
import textwrap
from pathlib import Path
from typing import Any

from trl_opsd.methods import method_names, method_of


PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
HEAD = """# Methods

<!-- Made by `python scripts/method_docs.py` from trl_opsd/methods/papers. Change it there. -->

`method: NAME` in a recipe, or `OPSDConfig(method="NAME")`, sets a method's values and functions; each value can be
overridden. `trl-opsd methods` lists them; [own_method.md](own_method.md) says how to write one. Each has a
recipe for this machine, `recipes/methods/NAME.yaml`, and one with the paper's settings, `NAME_paper.yaml`, which was
not run.

The label says what the code stands on: `paper` (the paper's formulas, read there or in a close reading of it by
others), `code` (code was read: the authors', or a public copy or re-implementation of it, which is then named), or
`proposed reading` (too little is published; what we chose is under **Changed**).
"""
STATISTICS = """Statistics run over the rows of a micro-batch, as TRL cuts it: another `per_device_train_batch_size` is
another loss."""


def link(name: str) -> str:
    method = method_of(name)
    return f"[{method.paper}](https://arxiv.org/abs/{method.paper})" if method.on_arxiv else f"<{method.paper}>"


def contents() -> str:
    """Table of the methods."""
    lines = ["| method | paper | label | needs |", "| --- | --- | --- | --- |"]
    for name in method_names():
        method = method_of(name)
        lines.append(f"| [{name}](#{name}) | {link(name)} | {method.label} | {method.needs} |")
    return "\n".join(lines)


def values(pairs: dict[str, Any]) -> str:
    return ", ".join(f"`{name}: {json.dumps(value, ensure_ascii=False)}`" for name, value in pairs.items())


def wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def block(name: str) -> str:
    """One method's entry."""
    method = method_of(name)
    by = f", by {method.authors.replace(' and ', ', ').replace(', others', ' and others')}" if method.authors else ""
    about = f"*{method.title}*{by}. {link(name)}. Label: {method.label}. Needs {method.needs}."
    lines = [f"## {name}", "", wrapped(about), ""]
    lines.append(importlib.import_module(f"trl_opsd.methods.papers.{name}").__doc__.strip())
    lines += ["", wrapped(f"Defaults: {values(method.defaults) or 'those of `OPSDConfig`'}.")]
    if method.options:
        lines += ["", wrapped(f"`method_options`: {values(method.options)}.")]
    if method.micro_batch_statistics:
        lines += ["", wrapped(STATISTICS)]
    return "\n".join(lines)


def page() -> str:
    return "\n\n".join([HEAD.strip(), contents(), *map(block, method_names())]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE} holds {len(method_names())} methods.")
