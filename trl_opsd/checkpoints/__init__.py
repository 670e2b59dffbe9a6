# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Complete checkpoints and exact resumption of a GRPO run."""

from trl_opsd.checkpoints.trainer import CrashSafeGRPOTrainer


__all__ = ["CrashSafeGRPOTrainer"]
