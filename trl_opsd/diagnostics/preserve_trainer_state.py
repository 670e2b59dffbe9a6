# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Uses a trainer and leaves it as it was."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch


if TYPE_CHECKING:
    from trl_opsd.trainer.opsd_trainer import OPSDTrainer

_FILLED_IN_PLACE = ("_metrics", "_logs", "_pending_extra_logs", "_pending_metrics")
_OF_METHODS = ("state", "losses", "rollouts", "logged")  # what a schedule follows


@contextmanager
def preserve_trainer_state(trainer: "OPSDTrainer") -> Iterator[None]:
    """
    Put back what sampling and losses change: random states (of Python, NumPy, the CPU and CUDA), counters, metrics, the
    completions table, the state of the privileged source and of the method. Gradients are cleared. The trainer is in
    training mode meanwhile.

    The random state of a vLLM engine can't be put back, nor what a user's own functions keep for themselves.

    Args:
        trainer ([`OPSDTrainer`]): Not in the middle of a step.
    """
    attributes, source = dict(vars(trainer)), trainer.privileged
    kept = copy.deepcopy(source.state_dict())
    method = {name: copy.deepcopy(getattr(trainer.method, name)) for name in _OF_METHODS}
    modes = [(module, module.training) for module in trainer.model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if trainer.accelerator.device.type == "cuda" else []
    for name in _FILLED_IN_PLACE:
        setattr(trainer, name, copy.deepcopy(attributes[name]))
    trainer.state = copy.copy(trainer.state)
    trainer.log_completions = False
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for name in vars(trainer).keys() - attributes.keys():
            delattr(trainer, name)
        vars(trainer).update(attributes)
        vars(trainer.method).update(method)
        trainer.model.zero_grad()
        for module, training in modes:
            module.training = training
        random.setstate(python)
        np.random.set_state(numpy)
        if kept is not None:
            source.load_state_dict(kept)
