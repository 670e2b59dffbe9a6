# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Compilation of the elementwise pass: on an accelerator, torch.compile makes one kernel of a function of `tile.py`, which
reads each logit a few times and keeps nothing between. A CPU runs the functions as they are, tile by tile in its cache.

The environment variable `TRL_OPSD_COMPILE` decides otherwise: 0 never compiles, 1 always does.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from trl_opsd.kernels.chunks import LEAST_ROWS, parts, tiles
from trl_opsd.kernels.tile import TileTokens


SWITCH = "TRL_OPSD_COMPILE"
DEVICES = ("cuda", "xpu")  # those for which Inductor writes Triton
# Without these thresholds Inductor keeps float32 arrays of all logits between the loops over a row
OPTIONS = {
    "realize_opcount_threshold": 10_000,
    "realize_reads_threshold": 10_000,
    "realize_acc_reads_threshold": 10_000,
    # No fused multiply-add, which rounds once where two operations that cancel round twice: zeros stay exact
    "emulate_precision_casts": True,
}
# One graph for each spec, number of views and vocabulary, exact in all of them, and for any number of tokens. There are
# more of them in a process than the 8 that torch allows, which would end in an error
DYNAMO = {"recompile_limit": 64, "specialize_float": True, "automatic_dynamic_shapes": False}
_failed: set[Callable] = set()


def wanted(device: torch.device) -> bool:
    """Whether functions are to be compiled for a device, as it is the default there or by the environment variable."""
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "0", "1"):
        raise ValueError(f"The environment variable `{SWITCH}` must be 0, 1 or unset, got {switch!r}.")
    return switch == "1" or (switch == "" and device.type in DEVICES)


def by_tile(
    function: Callable,
    run: Callable[[Callable, slice], None],
    raw: torch.Tensor,
    compilable: bool = True,
    whole: bool = True,
) -> None:
    """
    Run a function of `tile.py` over the rows of a chunk: compiled on all of them at once, or as it is on each tile.

    It runs as it is where it shall not be compiled, or cannot be, after one warning.

    Args:
        function (`Callable`): The function.
        run (`Callable[[Callable, slice], None]`): Calls what it is given in place of the function on some rows. It must
            not change anything before that call returns.
        raw (`torch.Tensor` of shape `(c, V)`): Raw logits of the chunk.
        compilable (`bool`, *optional*, defaults to `True`): Whether the function is free of functions of a method,
            which may not be traceable and may be new ones at each step.
        whole (`bool`, *optional*, defaults to `True`): Whether the compiled function keeps no array of all logits
            between its loops. With such arrays it goes in parts as small as it may.
    """
    (rows, v), done = raw.shape, 0
    if compilable and rows >= LEAST_ROWS and function not in _failed and wanted(raw.device):
        try:
            for part in parts(rows, 1 if whole else rows // LEAST_ROWS):
                run(compiled(function), part)
                done = part.stop
            return
        except _CompilationFailed as failure:
            _failed.add(function)
            warnings.warn(
                f"`torch.compile` failed on `{function.__name__}` of the loss, which now runs uncompiled: with the "
                f"same results, but slower. The environment variable `{SWITCH}=0` does that from the start. The error "
                f"was: {failure.__cause__}",
                stacklevel=2,
            )
    for tile in tiles(rows - done, v, raw.device):
        run(function, slice(done + tile.start, done + tile.stop))


class _CompilationFailed(Exception):
    """A compiled function could not be made or started."""


@cache
def compiled(function: Callable) -> Callable:
    """The compiled form of a function of `tile.py`, for any number of tokens."""
    inner = torch.compile(function, fullgraph=True, options=OPTIONS)

    def call(*args: Any) -> Any:
        for arg in args:
            _mark_tokens(arg)
        try:
            with torch._dynamo.config.patch(**DYNAMO):
                return inner(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever torch, Triton or a C compiler raises; if it is our own, it comes again
            raise _CompilationFailed from error

    return call


def _mark_tokens(arg: Any) -> None:
    """Let the number of tokens vary within one graph."""
    if isinstance(arg, torch.Tensor):
        if arg.ndim:
            torch._dynamo.maybe_mark_dynamic(arg, 0)
    elif isinstance(arg, list):
        for one in arg:
            _mark_tokens(one)
    elif isinstance(arg, TileTokens):
        for one in vars(arg).values():
            if isinstance(one, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(one, one.ndim - 1)
