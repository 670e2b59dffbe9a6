# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
State of a run beside weights, optimizer and random states: rollouts that are still to be trained on, and numbers that
are still to be logged. Neither TRL nor transformers saves them.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer


_SETTINGS = (
    "world_size",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "num_generations",
)


def _settings(trainer: GRPOTrainer) -> dict[str, int]:
    """Settings that determine the shapes of a generation batch."""
    return {name: getattr(trainer.args, name) for name in _SETTINGS}


def _file(trainer: GRPOTrainer, folder: Path) -> Path:
    # It holds what the teacher reads; what begins so is not pushed to the Hub
    return folder / f"_run_state_{trainer.args.process_index}.pt"


def _plain(value: Any) -> Any:
    """Copy in plain types and CPU tensors, which `torch.load` reads without running code of the file."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [_plain(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    if hasattr(value, "tolist"):  # NumPy's, of whose scalars some are subclasses of Python's
        return value.tolist()
    return None  # an object in a column of the completions table: a gap, where its text could not stand beside others


def save_run_state(
    trainer: GRPOTrainer, folder: Path, generation: int, flat: Callable[[Any], Any], start_time: float
) -> None:
    """
    Write the state of this process into a checkpoint.

    Args:
        trainer (`GRPOTrainer`): Between two optimizer steps.
        folder (`Path`): The checkpoint.
        generation (`int`): Generation batches so far.
        flat (`Callable`): From a buffered micro-batch to one of plain values.
        start_time (`float`): When training would have begun without the interruptions, in seconds since the epoch.
    """
    buffered = trainer._buffered_inputs
    if trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations) == 0:
        buffered = None  # used up: the next step samples
    if buffered is not None:
        buffered = [flat(batch) for batch in buffered]
    state = {
        "settings": _settings(trainer),
        "step": trainer._step,
        "generation": generation,
        "batches": buffered,
        "metrics": trainer._metrics,
        "training": trainer.model.training,  # not after an evaluation: whose metrics the next log shows
        "table": {name: rows for name, rows in trainer._logs.items() if name != "images"}
        if trainer.log_completions
        else None,
        "loss": {
            "running": trainer._tr_loss,
            "total": trainer._total_loss_scalar,
            "last_logged": trainer._globalstep_last_logged,
            "seconds": time.time() - start_time,
        },
    }
    torch.save(_plain(state), _file(trainer, folder))


def load_run_state(trainer: GRPOTrainer, folder: Path) -> tuple[dict[str, Any] | None, str]:
    """
    Read the state of this process. Every process gets its state, or none does because one is missing or does not fit.

    Returns:
        The state, or `None` and what is missing or differs.
    """
    file = _file(trainer, folder)
    state = torch.load(file, map_location="cpu", weights_only=True) if file.is_file() else None
    if state is None:
        wrong = f"it holds no {file.name}"
    else:
        now = _settings(trainer)
        differs = [f"{name} was {old}, is {now[name]}" for name, old in state["settings"].items() if old != now[name]]
        wrong = ", ".join(differs)
    # The teacher's forwards are planned together, so either all processes restore their batches or none does
    wrong = next((text for text in gather_object([wrong]) if text), "")
    return (None, wrong) if wrong else (state, "")


def restore_run_state(trainer: GRPOTrainer, state: dict[str, Any]) -> None:
    """Restore the rollouts and metrics read by [`load_run_state`]. The numbers of the loss follow later: see
    [`restore_loss`]."""
    trainer._step = state["step"]
    trainer.model.train(state["training"])
    trainer._buffered_inputs = None
    if state["batches"] is not None:
        device = trainer.accelerator.device
        trainer._buffered_inputs = [
            {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
            for batch in state["batches"]
        ]
    for mode, metrics in state["metrics"].items():
        trainer._metrics[mode].clear()
        trainer._metrics[mode].update(metrics)
    if state["table"] is not None and trainer.log_completions:
        _fill(trainer._logs, state["table"])


def _fill(logs: dict[str, Any], table: dict[str, Any]) -> None:
    for name, rows in table.items():
        if isinstance(rows, dict):
            logs[name].clear()
            _fill({column: logs[name][column] for column in rows}, rows)
        else:
            logs[name].clear()
            logs[name].extend(rows)


def restore_loss(trainer: GRPOTrainer, loss: dict[str, Any]) -> None:
    """Restore the loss since the last log and of the whole run, once transformers has set them to zero."""
    trainer._tr_loss += loss["running"].to(trainer._tr_loss.device)
    trainer._total_loss_scalar = loss["total"]
    trainer._globalstep_last_logged = loss["last_logged"]
    trainer._initial_global_step = 0  # the summary at the end is of the whole run
