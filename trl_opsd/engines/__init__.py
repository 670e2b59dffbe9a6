# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
What generates completions and what holds the weights: the places where vLLM, transformers, DeepSpeed, FSDP and DDP need
something of this package. Nothing here knows of distillation.
"""

from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.engines.shards import Tensors, Whole, shards_of


__all__ = ["Tensors", "Whole", "raise_on_all_ranks", "shards_of"]
