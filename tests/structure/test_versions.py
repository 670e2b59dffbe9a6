# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Versions that the package allows are those that were tried: one set in pyproject.toml, scripts and README."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version


ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BOUNDS = {need.name: need.specifier for need in map(Requirement, PROJECT["dependencies"])}
MATRIX = dict(re.findall(r'^(\w+)="?([^"\n]+)"?$', (ROOT / "scripts" / "matrix.sh").read_text(), flags=re.M))


def tried(which: str) -> dict[str, Version]:
    versions = dict(part.split("==") for part in MATRIX[which].split()) | {"torch": MATRIX[f"{which}_TORCH"]}
    return {name: Version(text) for name, text in versions.items()}


def lowest(bounds: SpecifierSet) -> Version:
    (text,) = [one.version for one in bounds if one.operator == ">="]
    return Version(text)


def minor(version: Version) -> str:
    return f"{version.major}.{version.minor}"


def test_the_matrix_tries_both_bounds():
    oldest, newest = tried("OLDEST"), tried("NEWEST")
    assert oldest.keys() == newest.keys() == BOUNDS.keys() - {"trl"}
    for name, version in oldest.items():
        assert version == lowest(BOUNDS[name]), f"{name}: {version} was tried, {BOUNDS[name]} is allowed"
    for name, version in newest.items():
        is_last = version in BOUNDS[name] and f"{version.major}.{version.minor + 1}" not in BOUNDS[name]
        assert is_last, f"{name}: {version} was tried, {BOUNDS[name]} is allowed"


def test_the_default_environments_are_within_the_bounds():
    setup = (ROOT / "scripts" / "setup.sh").read_text()
    (vllm,) = map(Requirement, PROJECT["optional-dependencies"]["vllm"])
    for name, bounds in (("TORCH", BOUNDS["torch"]), ("VLLM", vllm.specifier)):
        assert re.search(rf"^{name}=\$\{{{name}:-([^}}]+)\}}", setup, flags=re.M)[1] in bounds


def test_the_readme_names_the_bounds():
    text = " ".join((ROOT / "README.md").read_text().split())
    oldest, newest = tried("OLDEST"), tried("NEWEST")
    spans = ", ".join(f"{name} {minor(oldest[name])} to {minor(newest[name])}" for name in ("transformers", "torch"))
    assert f"trl {minor(lowest(BOUNDS['trl']))}, {spans}" in text
