# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Lines of README and docs: 120 characters at most; paragraphs: 60 words at most. First lines of docstrings."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
MOST_CHARACTERS = 120
MOST_WORDS = 60
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def prose(text: str) -> list[tuple[int, str]]:
    """Numbered lines of a page that are neither code, nor table, nor written by a benchmark between its markers."""
    lines, in_code, block = [], False, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
            line = ""
        marker = re.fullmatch(r"<!-- (/?)(\w+) -->", line)
        if marker:
            block = "" if marker[1] else marker[2]
            line = ""
        lines.append((number, "" if in_code or block or line.startswith("|") else line))
    return lines


def paragraphs(text: str) -> list[tuple[int, str]]:
    """Paragraphs of a page with the number of their first line. Each item of a list is one."""
    found: list[tuple[int, str]] = []
    is_open = False
    for number, line in prose(text):
        starts = re.match(r" *([-*]|\d+\.) ", line) or line.startswith("#")
        if not line.strip():
            is_open = False
        elif is_open and not starts:
            found[-1] = found[-1][0], f"{found[-1][1]} {line.strip()}"
        else:
            found.append((number, line.strip()))
            is_open = not line.startswith("#")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short(page):
    alone = re.compile(r"\s*(- )?!?\[[^\]]*\]\([^)]*\)[.,]?|\s*<?https?://\S+>?")  # a link that fills its line
    long = [
        number for number, line in prose(page.read_text()) if len(line) > MOST_CHARACTERS and not alone.fullmatch(line)
    ]
    assert not long, f"{page.name}: lines longer than {MOST_CHARACTERS} characters: {long}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paragraphs_are_short(page):
    long = [(number, len(text.split())) for number, text in paragraphs(page.read_text())]
    long = [(number, words) for number, words in long if words > MOST_WORDS]
    assert not long, f"{page.name}: paragraphs (first line, words) of more than {MOST_WORDS} words: {long}"


def test_items_of_a_list_are_paragraphs_and_code_is_none():
    text = "# Title\nOne two\nthree.\n\n- four\n  five\n- six\n\n"
    text += "```\ncode\n```\n| a | b |\n<!-- made -->\nx\n<!-- /made -->\n"
    assert [words for _, words in paragraphs(text)] == ["# Title", "One two three.", "- four five", "- six"]


def test_a_docstring_begins_with_a_name_or_a_verb():
    begins_otherwise = re.compile(r"(What|Whose|Who|How|Where|When|Why|As|That|All of|Of|In|From|By|With|For|It|If)\b")
    for path in (ROOT / "trl_opsd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                first = (ast.get_docstring(node) or "").strip().split("\n")[0]
                assert not begins_otherwise.match(first), f"{path}: {first}"
