# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Errors of a user's code in the middle of a run: they name their place, and reach every process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object


@contextmanager
def raise_on_all_ranks(
    accelerator: Accelerator,
    what: str,
    step: int,
    name: Callable[[Exception], str] | None = None,
    join: Callable[[], Any] | None = None,
) -> Iterator[None]:
    """
    Run what may fail on one process alone. If it does, every process raises, where the others would go on into the next
    collective and wait in it, with NCCL for half an hour.

    Args:
        accelerator (`Accelerator`): Tells the other processes.
        what (`str`): What runs in the block, as the error names it.
        step (`int`): Optimizer steps taken so far.
        name (`Callable`, *optional*): Says more exactly what ran, from the error.
        join (`Callable`, *optional*): The collective at the end of the block, in which the other processes wait.

    Raises:
        Exception: The block's own, with a note of its place.
        RuntimeError: On the processes whose block did not fail; it holds the text of the error.
    """
    failure = None
    try:
        yield
    except (Exception, SystemExit) as error:  # an exit would end this process alone
        failure = error
        if join is not None and accelerator.num_processes > 1:
            join()
    text = None
    if failure is not None:
        place = f"{what if name is None else name(failure)} on process {accelerator.process_index}, step {step}"
        failure.add_note(f"From {place}.")
        text = f"{type(failure).__name__} from {place}: {failure}"
    told = [one for one in gather_object([text]) if one is not None]
    if failure is not None:
        raise failure
    if told:
        raise RuntimeError(f"Another process failed, so this one stops too. {told[0]}")


def reward_name(error: Exception) -> str:
    """The reward function that TRL called when the error was raised."""
    found, trace = None, error.__traceback__
    while trace is not None:
        # TRL's own names: of the loop over the functions and, deeper, of the coroutine of an async one
        names = {"_calculate_rewards": "reward_func_name", "_invoke_async": "func_name"}
        code = trace.tb_frame.f_code
        if code.co_filename.endswith("grpo_trainer.py") and code.co_name in names:
            found = trace.tb_frame.f_locals.get(names[code.co_name], found)
        trace = trace.tb_next
    return "the rewards" if found is None else f"the reward function {found!r}"
