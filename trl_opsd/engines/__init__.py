# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
What generates completions and what holds the weights: the places where vLLM, transformers, DeepSpeed, FSDP and DDP need
something of this package. Nothing here knows of distillation.
"""

from trl_opsd.engines.shards import Tensors, Whole, shards_of
from trl_opsd.engines.trainer import EngineTrainer


__all__ = ["EngineTrainer", "Tensors", "Whole", "shards_of"]
