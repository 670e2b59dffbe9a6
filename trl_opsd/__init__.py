# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""On-policy self-distillation of language models, on top of TRL's GRPOTrainer."""

from trl_opsd.config.opsd_config import OPSDConfig
from trl_opsd.config.method_defaults import OPSDParser
from trl_opsd.diagnostics import PreflightReport, preflight
from trl_opsd.methods import Method
from trl_opsd.privileged import DatasetColumn
from trl_opsd.rollouts.view import PrivilegedSource, View
from trl_opsd.rollouts.rollout import Rollout, Turn
from trl_opsd.trainer.opsd_trainer import OPSDTrainer


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
