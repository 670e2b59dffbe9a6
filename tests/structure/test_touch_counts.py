# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
How many files know a thing by its name: what one has to touch to add another of its kind.

That adding one file is enough is tried for each kind elsewhere: a divergence in tests/config/test_divergence_option.py,
a method in tests/methods/test_frame.py, a source in tests/privileged/test_sources.py, a token metric in
tests/monitoring/test_metrics.py.
"""

import ast
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[2] / "trl_opsd"
# The values of a published method name what they need
TREES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
    for path in PACKAGE.rglob("*.py")
    if path.parent.name != "papers"
}


def names(tree: ast.AST) -> set[str]:
    """Names in code: variables, attributes, functions, classes, keywords and whole texts; no docstring."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)) | ast.alias(name=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Constant(value=str(name)):
                found.add(name)
    return found


def knowing(*words: str) -> set[str]:
    return {path for path, tree in TREES.items() if names(tree) & set(words)}


@pytest.mark.parametrize(
    ("words", "files"),
    [
        # `losses/__init__.py` exports the function, which a recipe does not need
        pytest.param(["skew_kl"], {"losses/divergences.py", "losses/__init__.py"}, id="divergence"),
        pytest.param(["taid"], set(), id="method"),
        pytest.param(["turn_hint"], {"privileged/sources/hints.py"}, id="source"),
        pytest.param(["most_errors"], {"privileged/conditions.py"}, id="condition"),
        pytest.param(["snapshot"], {"teacher/kinds.py"}, id="teacher kind"),
        pytest.param(["distillation_entry_clip_mode"], {"config/opsd_config.py"}, id="loss option, in the config"),
        pytest.param(
            ["entry_clip_mode"], {"losses/divergence_spec.py", "losses/token_loss.py"}, id="loss option, in the losses"
        ),
        # `support.py` computes it, and metrics.py gives it another name in the log
        pytest.param(
            ["mass_p"], {"losses/support.py", "losses/token_loss.py", "monitoring/metrics.py"}, id="token metric"
        ),
    ],
)
def test_files_that_know_it(words, files):
    assert knowing(*words) == files
