# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Engine support: the distributed backend, access to parameter shards, errors that reach every process, and fixes for
vLLM and for transformers' continuous batching. Nothing here knows of distillation.
"""

from trl_opsd.engines.backend import Backend
from trl_opsd.engines.distributed import raise_on_all_ranks
from trl_opsd.engines.shards import ParameterShards, Tensors, Unsharded


__all__ = ["Backend", "ParameterShards", "Tensors", "Unsharded", "raise_on_all_ranks"]
