# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Benchmarks, comparison of methods, trace of a step: `python -m benchmarks --help`."""
