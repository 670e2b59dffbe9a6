# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Published methods, one file each. `python -m trl_opsd.methods` lists them; docs/own_method.md says how to add one."""

from trl_opsd.methods.base import Method, StepContext, StepSummary, TokenSignals
from trl_opsd.methods.registry import method_names, method_of


__all__ = ["Method", "StepContext", "StepSummary", "TokenSignals", "method_names", "method_of"]
