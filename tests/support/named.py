# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Files, dotted names and commands that pages, recipes' comments, code and its messages name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
CODE = sorted(
    path for folder in ("trl_opsd", "benchmarks", "examples", "scripts") for path in (ROOT / folder).rglob("*.py")
)
TEXTS = [*PAGES, *RECIPES, *CODE, ROOT / "Makefile", *sorted((ROOT / "scripts").glob("*.sh")), ROOT / "pyproject.toml"]
PLACEHOLDER = "NAME"

ROOMS = {path.name for path in (ROOT / "trl_opsd").iterdir() if path.is_dir() and not path.is_symlink()}
FOLDERS = {"benchmarks", "docs", "examples", "recipes", "scripts", "tests", "trl_opsd", *ROOMS}
PATH = re.compile(r"(?<![\w./:*-])((?:\.\./)?[\w.-]+/[\w./-]*?\w\.(?:py|sh|md|yaml|csv|json|png))(?![\w/])")
DOTTED = re.compile(r"(?<![\w./-])trl_opsd(?:\.[A-Za-z_]\w*)+")
ENVIRONMENT = r"(?:\w+=\S* )*(?:\S*/bin/)?"
OWN = ENVIRONMENT + r"(?:trl-opsd [a-z]|python -m \w|python \S+\.py\b|accelerate launch|torchrun )"
COMMAND = re.compile(f"(?:{OWN}|make [a-z]|(?:python -m )?pip install ).*")
IN_A_MESSAGE = re.compile(f"{OWN}.*")


def paths(file: Path) -> set[str]:
    """Paths below a folder of the repository that a file names, without those with a name to fill in."""
    found = set(PATH.findall(file.read_text()))
    return {name for name in found if name.removeprefix("../").split("/")[0] in FOLDERS and PLACEHOLDER not in name}


def is_there(name: str, file: Path) -> bool:
    """Whether a named path exists: from the root, within the package, or beside the file that names it."""
    return any((folder / name).exists() for folder in (ROOT, ROOT / "trl_opsd", ROOT / "recipes", file.parent))


def dotted(file: Path) -> set[str]:
    """Dotted names in the package that a file names."""
    return set(DOTTED.findall(file.read_text()))


def strings(node: ast.AST) -> Iterator[str]:
    """Docstrings and other strings of a syntax tree, with `NAME` for what f-strings put in."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else PLACEHOLDER for part in node.values)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from strings(child)


def commands(file: Path) -> list[str]:
    """Commands that a file shows, each on one line."""
    text = file.read_text()
    if file.suffix == ".md":
        blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.S)
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        return [*filter(COMMAND.match, lines), *quoted(without_code(text))]
    if file.suffix == ".yaml":
        comment = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
        return [*filter(COMMAND.match, comment), *quoted(" ".join(comment))]
    if file.suffix == ".py":
        strings_of_file = [without_code(string) for string in strings(ast.parse(text))]
        return [command for string in strings_of_file for command in [*shown(string), *quoted(string)]]
    if file.name == "Makefile":
        lines = re.findall(r"^\t@(?:\$\(RUN\) )?\$\(BIN\)/(.*)$", text, flags=re.M)
        return [re.sub(r"\$\(\w+\)", "", line) for line in lines if COMMAND.match(line)]
    return []


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.S)


def quoted(text: str) -> list[str]:
    """Commands between backquotes."""
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return [span for span in spans if COMMAND.fullmatch(span)]


def shown(text: str) -> list[str]:
    """Commands of a docstring or message on a line of their own, before any second column, or after its last colon."""
    lines = [
        re.split(r"\s{2,}", part.strip())[0] for line in text.splitlines() for part in (line, *line.split(": ")[1:])
    ]
    return [re.split(r"\. |\.$", line)[0] for line in lines if IN_A_MESSAGE.fullmatch(line) and "`" not in line]
