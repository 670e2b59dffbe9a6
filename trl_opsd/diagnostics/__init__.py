# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Whether a run is worth beginning, whether its loss points to better scores, and what its checkpoints have learnt."""

from trl_opsd.diagnostics.alignment import alignment
from trl_opsd.diagnostics.alignment_report import Alignment, AlignmentReport
from trl_opsd.diagnostics.checkpoint_tokens import checkpoint_tokens
from trl_opsd.diagnostics.preflight import preflight
from trl_opsd.diagnostics.preflight_report import PreflightReport, ViewReport


__all__ = [
    "Alignment",
    "AlignmentReport",
    "PreflightReport",
    "ViewReport",
    "alignment",
    "checkpoint_tokens",
    "preflight",
]
