# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Options of a run, their checks, and the defaults that a method sets."""

from trl_opsd.config.method_defaults import OPSDParser
from trl_opsd.config.opsd_config import OPSDConfig


__all__ = ["OPSDConfig", "OPSDParser"]
