# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The package's long description: the README with absolute links, as the package index has no files beside it."""

import re
import tomllib
from pathlib import Path
from typing import Any

from setuptools import setup


ROOT = Path(__file__).parent


def with_absolute_links(text: str, project: dict[str, Any]) -> str:
    """A page of Markdown at the root whose links and pictures lead to the repository, at the tag of the version."""
    page = project["urls"]["Repository"]
    picture = page.replace("github.com", "raw.githubusercontent.com")
    tag = f"v{project['version']}"

    def link(match: re.Match[str]) -> str:
        label, target = match.groups()
        if label is None or "://" in target:
            return match[0]
        if label.startswith("!"):
            return f"{label}({picture}/{tag}/{target})"
        return f"{label}({page}/blob/{tag}/{'README.md' if target.startswith('#') else ''}{target})"

    # Code, which may look like a link, is matched as a whole and stays
    return re.sub(r"```.*?```|(!?\[[^\]]*\])\(([^)\s]+)\)|`[^`]*`", link, text, flags=re.S)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    setup(
        long_description=with_absolute_links((ROOT / "README.md").read_text(encoding="utf-8"), project),
        long_description_content_type="text/markdown",
    )
