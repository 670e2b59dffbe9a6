# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
On-policy self-distillation of language models, on top of TRL's GRPOTrainer.

Public names are imported when they are asked for, so that the command line answers without loading torch.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from trl_opsd.config import OPSDConfig, OPSDParser
    from trl_opsd.diagnostics import AlignmentReport, PreflightReport, alignment, preflight
    from trl_opsd.losses import Tile, TokenStats
    from trl_opsd.methods import Method
    from trl_opsd.privileged import DatasetColumn
    from trl_opsd.rollouts import PrivilegedSource, Rollout, Turn, View
    from trl_opsd.trainer import OPSDTrainer

__all__ = [
    "AlignmentReport",
    "DatasetColumn",
    "Method",
    "OPSDConfig",
    "OPSDParser",
    "OPSDTrainer",
    "PreflightReport",
    "PrivilegedSource",
    "Rollout",
    "Tile",
    "TokenStats",
    "Turn",
    "View",
    "alignment",
    "preflight",
]

_ROOMS = {
    "config": ("OPSDConfig", "OPSDParser"),
    "diagnostics": ("AlignmentReport", "PreflightReport", "alignment", "preflight"),
    "losses": ("Tile", "TokenStats"),
    "methods": ("Method",),
    "privileged": ("DatasetColumn",),
    "rollouts": ("PrivilegedSource", "Rollout", "Turn", "View"),
    "trainer": ("OPSDTrainer",),
}
_HOMES = {name: f"trl_opsd.{room}" for room, names in _ROOMS.items() for name in names}

try:
    __version__ = version("trl-opsd")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
