# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Uses a trainer and leaves it as it was."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trl_opsd.engines.random_state import keep_random_state


if TYPE_CHECKING:
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer

_FILLED_IN_PLACE = ("_metrics", "_logs", "_pending_extra_logs", "_pending_metrics")


@contextmanager
def preserve_trainer_state(trainer: "OPSDTrainer") -> Iterator[None]:
    """
    Put back what sampling and losses change: random states (of Python, NumPy, the CPU and CUDA), counters, metrics, the
    completions table, the state of every part of the trainer. Gradients are cleared. The trainer is in
    training mode meanwhile.

    The random state of a vLLM engine can't be put back, nor what a user's own functions keep for themselves.

    Args:
        trainer ([`OPSDTrainer`]): Not in the middle of a step.
    """
    attributes = dict(vars(trainer))
    states = {name: copy.deepcopy(part.state()) for name, part in trainer.parts.items()}
    modes = [(module, module.training) for module in trainer.model.modules()]
    for name in _FILLED_IN_PLACE:
        setattr(trainer, name, copy.deepcopy(attributes[name]))
    trainer.state = copy.copy(trainer.state)
    trainer.log_completions = False
    trainer.token_log = copy.copy(trainer.token_log)
    trainer.token_log.active = False
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    try:
        with keep_random_state(trainer.accelerator.device):
            yield
    finally:
        for name in vars(trainer).keys() - attributes.keys():
            delattr(trainer, name)
        vars(trainer).update(attributes)
        trainer.model.zero_grad()
        for module, training in modes:
            module.training = training
        for name, part in trainer.parts.items():
            part.restore(states[name])
