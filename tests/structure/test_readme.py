# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The README describes the repository as it is: its tree lists every file of the package, and its imports work.

In the tree, a folder's line stands for its `__init__.py`, and the line of `methods/papers/` for all methods.
"""

import importlib
import re
import subprocess
from pathlib import Path

import pytest
from test_imports import FLOORS


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TREE = next(block for block in re.findall(r"```\w*\n(.*?)```", README, flags=re.S) if block.startswith("trl_opsd/"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def listed(tree: str) -> list[tuple[str, str]]:
    """Path and purpose of each line of a tree, whose folders end with `/` and are indented by two spaces each."""
    folders: list[str] = []
    lines = []
    for line in tree.splitlines():
        indent, name, purpose = re.fullmatch(r"( *)(\S+)(?: +(.*))?", line).groups()
        folders = folders[: len(indent) // 2]
        lines.append(("".join([*folders, name]), purpose or ""))
        if name.endswith("/"):
            folders.append(name)
    return lines


def expected() -> set[str]:
    """Files and folders of the package that the tree must list, and the folders of the top level that git holds."""
    package = [path for path in (ROOT / "trl_opsd").rglob("*.py") if path.parent.name != "papers"]
    names = {path.relative_to(ROOT).as_posix() for path in package}
    inner = {name for name in names if name.endswith("/__init__.py") and name.count("/") > 1}
    rooms = {name.removesuffix("__init__.py") for name in inner} | {"trl_opsd/methods/papers/"}
    held = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    top = {f"{name.split('/')[0]}/" for name in held if "/" in name and not name.startswith(".")}
    return names - inner | rooms | top


def test_the_tree_lists_every_file_once():
    paths = [path for path, _ in listed(TREE)]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    assert not twice, f"listed twice in README's tree: {twice}"
    missing = sorted(expected() - set(paths))
    assert not missing, f"not in README's tree: {missing}"


def test_the_tree_lists_nothing_that_is_not_there():
    gone = [path for path, _ in listed(TREE) if not (ROOT / path).exists()]
    assert not gone, f"in README's tree, and not in the repository: {gone}"


def test_every_line_of_the_tree_has_a_purpose():
    bare = [path for path, purpose in listed(TREE) if len(purpose.split()) < 2]
    assert not bare, f"without a purpose of two words or more in README's tree: {bare}"


def test_contributing_draws_the_floors():
    """From the ground up, as tests/structure/test_imports.py has them; files beside the rooms are not drawn."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    drawn = next(block for block in re.findall(r"```\n(.*?)```", text, flags=re.S) if block.startswith("rollouts"))
    rooms = [{room for room in floor if (ROOT / "trl_opsd" / room).is_dir()} for floor in FLOORS]
    assert [set(line.split(", ")) for line in drawn.splitlines()] == [floor for floor in rooms if floor]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_a_page_imports_exist(page):
    for module, names in re.findall(r"^\+? *from (trl_opsd[\w.]*) import ([\w, ]+)$", page.read_text(), flags=re.M):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{page.name}: from {module} import {name}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_exists(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if "://" not in target:
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name} links to {target}, which is not there"
            assert not anchor or anchor in anchors(file), f"{page.name} links to {target}#{anchor}: no such heading"


def glossary() -> list[tuple[str, str]]:
    """Term and cell "in this package" of each row of docs/glossary.md."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \| .+ \|$", (ROOT / "docs" / "glossary.md").read_text(), flags=re.M)
    return [row for row in rows if row[0] not in ("term", "---")]


def test_names_of_the_glossary_exist():
    """Each backquoted name stands in the file that the cell names after it, or in the config."""
    rows = glossary()
    assert len(rows) > 50
    for term, cell in rows:
        names = re.findall(r"`([^`]+)`", cell)
        files = [name for name in names if name.endswith(".py")]
        code = "".join((ROOT / "trl_opsd" / name).read_text() for name in files or ["config/opsd_config.py"])
        for name in set(names) - set(files):
            word = re.split(r"\W+", name.strip("_"))[0]
            assert word in code, f"glossary, {term}: {name} is not in {files or 'OPSDConfig'}"
