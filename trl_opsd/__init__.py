# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""On-policy self-distillation of language models, on top of TRL's GRPOTrainer."""

from trl_opsd.config import OPSDConfig, OPSDParser
from trl_opsd.diagnostics import PreflightReport, preflight
from trl_opsd.methods import Method
from trl_opsd.privileged import DatasetColumn
from trl_opsd.rollouts import PrivilegedSource, Rollout, Turn, View
from trl_opsd.trainer import OPSDTrainer


__all__ = [
    "DatasetColumn",
    "Method",
    "OPSDConfig",
    "OPSDParser",
    "OPSDTrainer",
    "PreflightReport",
    "PrivilegedSource",
    "Rollout",
    "Turn",
    "View",
    "preflight",
]
