# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""`EngineTrainer`: a `GRPOTrainer` with mends where generation and distribution meet training."""

from typing import Any

from trl import GRPOTrainer

from trl_opsd.engines.continuous_batching import undisturbed
from trl_opsd.engines.vllm_cpu import sync_by_reload_on_cpu


class EngineTrainer(GRPOTrainer):
    """
    What the engines below TRL need beyond it.

    A subclass sets `_distills` before `__init__`; where it does not distil, generation is TRL's to the last digit.
    """

    _distills = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.use_vllm:
            sync_by_reload_on_cpu(self.vllm_generation)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], list[list[float]] | None]:
        if not (self._distills and self.use_transformers_continuous_batching):
            return super()._generate_single_turn(*args, **kwargs)
        with undisturbed(self.model):
            return super()._generate_single_turn(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        if not self.is_in_train and self.accelerator.distributed_type.startswith("MULTI_"):
            # `evaluate` before `train` marks the model as prepared, and the ranks would then train without DDP, each on
            # its own (transformers 5.23, accelerate 1.15)
            vars(self.model).pop("_is_accelerate_prepared", None)
        return output
