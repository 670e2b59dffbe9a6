# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The import graph of the package: rooms on floors, each of which knows only the floors below it, and no circle."""

import ast
import inspect
import sys
from graphlib import TopologicalSorter
from pathlib import Path

from transformers import Trainer
from trl import GRPOTrainer


PACKAGE = Path(__file__).parents[2] / "trl_opsd"
FLOORS = [
    {"deprecated", "options"},
    {"rollouts", "losses", "engines", "memory"},
    {"kernels", "batches", "conflicts"},
    {"prompts", "model"},
    {"privileged", "monitoring"},
    {"methods", "teacher", "turns", "rewards", "guided", "examples"},
    {"config", "checkpoints"},
    {"token_report"},
    {"trainer"},
    {"diagnostics"},
    {"phases"},
    {"__init__"},
    {"cli"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
# What these may import of other packages, beside the standard library
ONLY_TORCH = ("losses", "kernels")


def module(path: Path) -> str:
    parts = path.parts[:-1] if path.name == "__init__" and path.parts[:-1] else path.parts
    return ".".join(("trl_opsd", *parts)).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def imported(path: Path, when_run: bool = True) -> set[str]:
    """Full names that a file imports; with `when_run`, those of statements that run when it is imported."""
    tree = ast.parse((PACKAGE / path).with_suffix(".py").read_text())
    nodes = tree.body if when_run else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(names: set[str]) -> set[str]:
    """The modules of the package among imported names: of `trl_opsd.a.b` the module, be `b` one or a name in it."""
    inner = {name for name in names if name.split(".")[0] == "trl_opsd"}
    return {name if name in MODULES else name.rpartition(".")[0] for name in inner}


def room(name: str) -> str:
    return "__init__" if name == "trl_opsd" else name.split(".")[1]


def test_every_room_has_a_floor():
    assert {room(name) for name in MODULES} == set(FLOOR_OF)


def test_a_file_imports_from_lower_floors_or_its_own_room():
    for path in FILES:
        here = room(module(path))
        for name in own(imported(path, when_run=False)):
            there = room(name)
            assert there == here or FLOOR_OF[there] < FLOOR_OF[here], f"{path} imports {name}"


def test_there_is_no_circle():
    graph = {name: own(imported(path)) - {name} for name, path in MODULES.items()}
    # A room's __init__ stands for the files that it imports
    TopologicalSorter(graph).prepare()


def test_pure_maths_knows_torch_alone():
    files = [path for path in FILES if path.parts[0] in ONLY_TORCH]
    assert {path.parts[0] for path in files} == set(ONLY_TORCH)
    for path in files:
        others = {name.split(".")[0] for name in imported(path, when_run=False)} - sys.stdlib_module_names
        assert others <= {"torch", "trl_opsd"}, path


def test_the_memory_calculator_needs_no_package():
    for path in FILES:
        if path.parts[0] == "memory":
            others = {name.split(".")[0] for name in imported(path, when_run=False)} - sys.stdlib_module_names
            assert others <= {"trl_opsd"}, path


def test_no_import_of_what_may_vanish():
    for path in FILES:
        assert not any(name.startswith("trl.experimental") for name in imported(path, when_run=False)), path


TREES = [ast.parse((PACKAGE / path).with_suffix(".py").read_text()) for path in FILES]


def test_nobody_reads_a_private_attribute_of_another_object():
    """TRL's own members of a trainer are not ours, so a part of the trainer may ask for those."""
    of_parts, of_trainers = (
        {name for tree in TREES for node in ast.walk(tree) for name in private_members(node, trainers)}
        for trainers in (False, True)
    )
    parents = "".join(inspect.getsource(one) for one in (GRPOTrainer, Trainer))
    of_trainers = {name for name in of_trainers if name not in parents}
    for path, tree in zip(FILES, TREES, strict=True):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Attribute | ast.Name):
                continue
            whose = ast.unparse(node.value)
            if whose not in ("self", "cls"):
                defined = of_trainers if whose.endswith("trainer") else of_parts
                assert node.attr not in defined, f"{path}:{node.lineno}: {whose}.{node.attr}"


def private_members(node: ast.AST, trainers: bool) -> list[str]:
    """Underscored methods, fields and attributes of a class: of the trainers, or of any other."""
    if not isinstance(node, ast.ClassDef) or trainers != any(
        ast.unparse(one).endswith("Trainer") for one in node.bases
    ):
        return []
    methods = [one.name for one in node.body if isinstance(one, ast.FunctionDef)]
    fields = [one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
    assigned = [
        one.attr
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store) and ast.unparse(one.value) == "self"
    ]
    return [name for name in [*methods, *fields, *assigned] if name.startswith("_") and not name.startswith("__")]
