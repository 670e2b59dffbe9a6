# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Signs that a run goes wrong."""

from trl_opsd.diagnostics.monitor import SignalMonitor


__all__ = ["SignalMonitor"]
