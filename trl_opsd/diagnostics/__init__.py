# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Whether a run is worth beginning."""

from trl_opsd.diagnostics.preflight import preflight
from trl_opsd.diagnostics.preflight_report import PreflightReport, ViewReport


__all__ = ["PreflightReport", "ViewReport", "preflight"]
