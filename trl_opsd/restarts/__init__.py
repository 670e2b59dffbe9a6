# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A run that stops goes on as if it had not: whole checkpoints, its own state, errors that reach every process."""

from trl_opsd.restarts.failures import raised_everywhere
from trl_opsd.restarts.trainer import RestartableTrainer


__all__ = ["RestartableTrainer", "raised_everywhere"]
