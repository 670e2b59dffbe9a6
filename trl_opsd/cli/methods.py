# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The methods, one line each: `python -m trl_opsd.methods`."""

import importlib

from trl_opsd.methods.registry import method_names, method_of


def first_sentence(name: str) -> str:
    text = " ".join(importlib.import_module(f"trl_opsd.methods.papers.{name}").__doc__.split())
    return text.split(". ")[0].rstrip(".") + "."


def main() -> None:
    for name in method_names():
        method = method_of(name)
        paper = f"arXiv {method.paper}" if method.on_arxiv else method.paper
        print(f"{name} ({method.label}, {paper})\n    {first_sentence(name)}\n    needs {method.needs}")


if __name__ == "__main__":
    main()
