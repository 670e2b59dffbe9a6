# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Names in the log."""

PREFIX = "self_distillation/"  # of every metric of the package
