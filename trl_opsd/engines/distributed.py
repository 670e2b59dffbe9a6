# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Errors of code that runs on every process: they name the process and the step, and are raised on all of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from accelerate.utils import gather_object


class Processes(Protocol):
    """Processes of a run, such as an `Accelerator` knows them."""

    @property
    def num_processes(self) -> int: ...

    @property
    def process_index(self) -> int: ...


@contextmanager
def raise_on_all_ranks(
    processes: Processes,
    what: str,
    step: int | None = None,
    name: Callable[[Exception], str] | None = None,
    join: Callable[[], Any] | None = None,
    gather: Callable[[list], list] = gather_object,
) -> Iterator[None]:
    """
    Context for code that may fail on one process alone. If it does, every process raises, where the others would go on
    into the next collective and wait in it, with NCCL for half an hour. A collective.

    Args:
        processes ([`Processes`]): Number and index of the processes: an `Accelerator`, for example.
        what (`str`): Name of the code, for the error.
        step (`int`, *optional*): Optimizer steps taken so far.
        name (`Callable`, *optional*): From the error to a more exact name.
        join (`Callable`, *optional*): Collective at the end of the block, in which the other processes wait.
        gather (`Callable`): Gathers the items of a list from all processes.

    Raises:
        Exception: The block's own, with a note of its place.
        RuntimeError: On the processes whose block did not fail; it holds the text of the error.
    """
    failure = None
    try:
        yield
    except (Exception, SystemExit) as error:  # an exit would end this process alone
        failure = error
        if join is not None and processes.num_processes > 1:
            join()
    text = None
    if failure is not None:
        location = f"{what if name is None else name(failure)} on process {processes.process_index}"
        location += "" if step is None else f", step {step}"
        failure.add_note(f"From {location}.")
        text = f"{type(failure).__name__} from {location}: {failure}"
    texts = [one for one in gather([text]) if one is not None]
    if failure is not None:
        raise failure
    if texts:
        raise RuntimeError(f"Another process failed, so this one stops too. {texts[0]}")


def reward_name(error: Exception) -> str:
    """Name of the reward function that TRL called when the error was raised."""
    found, trace = None, error.__traceback__
    while trace is not None:
        # TRL's own names: of the loop over the functions and, deeper, of the coroutine of an async one
        names = {"_calculate_rewards": "reward_func_name", "_invoke_async": "func_name"}
        code = trace.tb_frame.f_code
        if code.co_filename.endswith("grpo_trainer.py") and code.co_name in names:
            found = trace.tb_frame.f_locals.get(names[code.co_name], found)
        trace = trace.tb_next
    return "the rewards" if found is None else f"the reward function {found!r}"
