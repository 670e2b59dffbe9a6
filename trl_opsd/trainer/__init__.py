# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The trainer and the parts that only it knows."""

from trl_opsd.trainer.opsd_trainer import OPSDTrainer


__all__ = ["OPSDTrainer"]
