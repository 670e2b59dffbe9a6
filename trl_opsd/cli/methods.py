# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Listing of the methods, with label, paper and needs: `trl-opsd methods`."""

import importlib
import sys
from collections.abc import Sequence

from trl_opsd.methods.registry import method_names, method_of


def first_sentence(name: str) -> str:
    """First sentence of a method's docstring."""
    text = " ".join(importlib.import_module(f"trl_opsd.methods.papers.{name}").__doc__.split())
    return text.split(". ")[0].rstrip(".") + "."


def run(args: Sequence[str]) -> None:
    """Print two lines and the needs of each method."""
    if args:
        sys.exit(f"error: `trl-opsd methods` takes no options, got {' '.join(args)}.")
    for name in method_names():
        method = method_of(name)
        paper = f"arXiv {method.paper}" if method.on_arxiv else method.paper
        print(f"{name} ({method.label}, {paper})\n    {first_sentence(name)}\n    needs {method.needs}")
