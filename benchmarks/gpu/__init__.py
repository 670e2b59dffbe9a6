# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Check of the package on one GPU: values, the loss beside others, a step, a training that resumes, DDP and FSDP2.

Each part runs in a process of its own with a deadline of its own, and writes down each row as it comes, so that what a
deadline or a crash cuts off costs only itself.
"""

from benchmarks.gpu.run import main as main
