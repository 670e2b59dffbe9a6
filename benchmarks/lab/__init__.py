# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Lab model: a small Llama trained from nothing, whose slips, tasks and contexts are known."""

from benchmarks.lab.make import main


__all__ = ["main"]
