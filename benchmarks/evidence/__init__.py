# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Experiments on the lab model: contenders and controls, each on several seeds, with intervals."""

from benchmarks.evidence.runs import main


__all__ = ["main"]
