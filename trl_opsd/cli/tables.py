# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Plain text for a terminal or a pipe: tables and wrapped paragraphs."""

import shutil
import textwrap
from collections.abc import Sequence


WIDEST = 120


def width() -> int:
    """Columns to write: those of the terminal, and at most 120."""
    return min(shutil.get_terminal_size((100, 24)).columns, WIDEST)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose last column is wrapped."""
    rows = [heads, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads) - 1)]
    start = sum(widths) + 2 * len(widths)
    room = max(width() - start, 30)
    for row in rows:
        first, *others = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        cells = (f"{cell:<{size + 2}}" for cell, size in zip(row[:-1], widths, strict=True))
        print(("".join(cells) + first).rstrip())
        for line in others:
            print(" " * start + line)


def print_text(text: str, indent: str = "") -> None:
    """Print a wrapped paragraph."""
    print(textwrap.fill(text, width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False))
