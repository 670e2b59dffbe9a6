# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Calls of a source: sync or async, within a time limit, with validated views and the policy for errors."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from accelerate.logging import get_logger

from trl_opsd.privileged.checks import row_error, source_name
from trl_opsd.rollouts.rollout import Group, Rollout
from trl_opsd.rollouts.view import PrivilegedSource, View, Views


logger = get_logger(__name__)


def call(source: PrivilegedSource, groups: list[Group]) -> Views:
    """Views of `groups` from a source, sync or async."""
    return call_all([source], groups)[0]


def call_all(sources: list[PrivilegedSource], groups: list[Group]) -> list[Views]:
    """Views of `groups` from several sources. Async ones wait at the same time."""
    results = []
    for source in sources:
        with _naming(source):
            results.append(source(groups))
    waiting = [i for i, result in enumerate(results) if inspect.isawaitable(result)]
    if waiting:
        views = _awaited([_named(sources[i], results[i]) for i in waiting])
        results = [views.pop(0) if i in waiting else result for i, result in enumerate(results)]
    for source, result in zip(sources, results, strict=True):
        _check_count(result, groups, source)
    return results


@contextmanager
def _naming(source: PrivilegedSource) -> Iterator[None]:
    """Context that notes the source in its errors. Sources within sources are all noted. An exit or a cancellation,
    which would end this process alone and pass by all error handling, becomes a RuntimeError."""
    try:
        try:
            yield
        except (SystemExit, asyncio.CancelledError) as end:
            if isinstance(end, asyncio.CancelledError) and _cancelled_from_outside():
                raise
            raise RuntimeError(f"It gave no views, but raised {type(end).__name__}.") from end
    except Exception as error:
        note = f"Raised by the privileged source {source_name(source)}."
        if note not in getattr(error, "__notes__", []):
            error.add_note(note)
        raise


async def _named(source: PrivilegedSource, awaitable: Awaitable[Any]) -> Any:
    with _naming(source):
        return await awaitable


def _cancelled_from_outside() -> bool:
    """Whether this thread's event loop cancels the current task, and not the source itself."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop
        return False
    return task is not None and bool(task.cancelling())


def _awaited(awaitables: list[Awaitable[Any]]) -> list[Any]:
    """Results of awaitables. In a thread of their own, as this one may run an event loop already (a notebook does)."""

    async def results() -> list[Any]:
        return await asyncio.gather(*awaitables)

    return in_thread(lambda: asyncio.run(results()), None)


class LateError(TimeoutError):
    """
    Timeout of a function. Its thread can't be stopped; it does not keep the process alive.

    Args:
        thread (`threading.Thread`): Thread in which the function goes on.
    """

    def __init__(self, thread: threading.Thread):
        super().__init__("not done in time")
        self.thread = thread


def in_thread(function: Callable[[], Any], timeout: float | None) -> Any:
    """
    Run a function in a thread of its own.

    Args:
        function (`Callable`): Function without arguments.
        timeout (`float`, *optional*): Seconds to wait for its result.

    Raises:
        LateError: After `timeout` seconds.
    """
    result: dict[str, Any] = {}

    def run() -> None:
        try:
            result["value"] = function()
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise LateError(thread)
    if "error" in result:
        raise result["error"]
    return result["value"]


def rollouts_of(groups: list[Group]) -> list[Rollout]:
    """Rollouts of `groups`, in order."""
    return [rollout for group in groups for rollout in group]


def _check_count(views: Any, groups: list[Group], source: Any) -> None:
    count = len(rollouts_of(groups))
    if not isinstance(views, list) or len(views) != count:
        got = f"{len(views)} lists" if isinstance(views, list) else type(views).__name__
        raise ValueError(
            f"The privileged source {source_name(source)} must return one list of views for each of the {count} "
            f"rollouts of the {len(groups)} groups, in their order; got {got}."
        )


@dataclass
class Asker:
    """
    Caller of one source over a run: validates its views, limits its time and applies the policy for errors.

    Args:
        source (`PrivilegedSource`): Source to call.
        on_error (`str`): `privileged_on_error`.
        timeout (`float`, *optional*): `privileged_timeout`.
        skipped (`int`): Rollouts of the last call that have no views because of an error.
        raised (`bool`): Whether the source itself raised an error in the last call.
    """

    source: PrivilegedSource
    on_error: str
    timeout: float | None
    skipped: int = field(default=0, init=False)
    raised: bool = field(default=False, init=False)
    _late: threading.Thread | None = field(default=None, init=False)

    def __call__(self, groups: list[Group]) -> Views:
        """
        Views of the wanted rollouts, in order.

        Raises:
            Exception: An error of the source, or a ValueError about its views.
        """
        wanted = [rollout for rollout in rollouts_of(groups) if rollout.wanted]
        self.skipped, self.raised = 0, False
        try:
            with _naming(self.source):
                views = call(self.source, groups) if self.timeout is None else self._in_time(groups)
        except Exception as error:
            self.raised = True
            self._skip(error, len(wanted))
            return [[] for _ in wanted]
        rows = [(row, one) for one, row in zip(rollouts_of(groups), views, strict=True) if one.wanted]
        errors = [row_error(row, rollout, self.source) for row, rollout in rows]
        return [self._valid(row, error) for (row, _), error in zip(rows, errors, strict=True)]

    def _in_time(self, groups: list[Group]) -> Views:
        way = "Raise `privileged_timeout`, or set `privileged_on_error='skip'` to train such a batch without its views."
        if self._late is not None and self._late.is_alive():
            # Two calls at a time would be more than a source must be ready for
            raise TimeoutError(f"It is still at work on an earlier batch, for which it was late. {way}")
        try:
            return in_thread(lambda: call(self.source, groups), self.timeout)
        except LateError as error:
            self._late = error.thread
            raise TimeoutError(f"It gave no views within {self.timeout} seconds. {way}") from None

    def _valid(self, views: list[View], error: ValueError | None) -> list[View]:
        if error is None:
            return views
        try:
            with _naming(self.source):
                raise error
        except ValueError as named:
            self._skip(named, 1)
        return []

    def _skip(self, error: Exception, count: int) -> None:
        if self.on_error == "error":
            raise error
        self.skipped += count
        logger.warning(
            f"{count} rollouts are trained without views: {type(error).__name__} from the privileged source "
            f"{source_name(self.source)}: {error}",
            main_process_only=False,
        )
