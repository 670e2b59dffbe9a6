# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Blocking of the tokens: chunks for the matrix products, tiles for the elementwise work.

A *chunk* goes through the matrix products: large, so that they run at full speed and the sum in the head's
gradient is read and written rarely. A *tile* of it goes through the elementwise work: on a CPU it fits the cache,
where they cost a third of what they cost in memory; on a GPU it bounds the temporary arrays, and where the elementwise
work is compiled, so that there are none, the tile is the whole chunk (see `compiled.py`).

Legend: N tokens, V vocabulary.
"""

import torch


# Bytes that the logits of a chunk may take, student's and teachers' together, and the most tokens of a chunk: on a CPU
# the products gain nothing beyond 256. The sizes for other devices are not measured.
_CPU_BYTES, _CPU_TOKENS = 320 * 2**20, 256
_BYTES, _TOKENS = 2**30, 4096
# Tokens of a chunk from which the elementwise work is compiled: with fewer, Inductor would cut each row in parts and
# make several kernels, as it decides by the first chunk that it sees. Twice the multiprocessors of an H100
LEAST_ROWS = 264
# Entries of a tile: 1 MiB of float32 on a CPU
_CPU_TILE, _TILE = 2**18, 2**23


def budget(device: torch.device) -> tuple[int, int]:
    """Bytes of logits and tokens that a chunk may have at most."""
    return (_CPU_BYTES, _CPU_TOKENS) if device.type == "cpu" else (_BYTES, _TOKENS)


def chunks(n: int, v: int, blocks: int, dtype: torch.dtype, device: torch.device, size: int | None) -> list[slice]:
    """
    Cut N tokens into chunks of nearly equal size.

    Args:
        n (`int`): Tokens.
        v (`int`): Vocabulary.
        blocks (`int`): Arrays of logits that a chunk holds at a time.
        dtype (`torch.dtype`): Their type.
        device (`torch.device`): Where they are.
        size (`int` or `None`): Most tokens of a chunk, instead of what the memory budget gives.
    """
    if size is None:
        room, most = budget(device)
        size = max(1, min(most, room // (blocks * v * dtype.itemsize)))
    return parts(n, -(-n // size))


def parts(n: int, count: int) -> list[slice]:
    """Cut N tokens into so many parts of nearly equal size, or fewer."""
    length = max(1, -(-n // max(count, 1)))
    return [slice(start, min(start + length, n)) for start in range(0, n, length)]


def tiles(rows: int, v: int, device: torch.device) -> list[slice]:
    """Cut the rows of a chunk into tiles."""
    size = max(1, (_CPU_TILE if device.type == "cpu" else _TILE) // v)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
