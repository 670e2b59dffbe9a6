# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Self-distillation methods, one file each in papers/. `trl-opsd methods` lists them; docs/own_method.md adds one."""

from trl_opsd.deprecated import deprecated_names
from trl_opsd.methods.base import Method, StepContext, StepSummary, TokenSignals
from trl_opsd.methods.registry import method_names, method_of


__all__ = ["Method", "StepContext", "StepSummary", "TokenSignals", "method_names", "method_of"]

__getattr__ = deprecated_names(
    __name__,
    {
        "Moment": "trl_opsd.methods.StepContext",
        "OPSDParser": "trl_opsd.OPSDParser",
        "Seen": "trl_opsd.methods.StepSummary",
        "Signals": "trl_opsd.methods.TokenSignals",
    },
)
