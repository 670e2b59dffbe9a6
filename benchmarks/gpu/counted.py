# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Time of the contenders over the bare matrix products by counts: operations, and bytes read and written.

Nothing is overlapped: products at a usual rate, elementwise passes and the sum of the head's gradient at the bandwidth
of the card. Legend: N tokens, H hidden size, V vocabulary, c tokens of a chunk.
"""

from dataclasses import dataclass

from benchmarks.gpu.contenders import FLOAT32, FULL, OURS, TRITON, TRL, UNCOMPILED


PRODUCT_RATE = 700e12  # operations a second in bfloat16
BANDWIDTH = {"H100": 3.0e12, "H200": 4.3e12}  # bytes a second of a copy, read and written
FLOOR = 8  # N H V operations of the products alone, with one view
SUM_BYTES = 8  # of each entry of the head's gradient for each chunk: read and written in float32
OWN_LOGITS, TRL_CHUNK = 2**30, 4096  # bytes of logits in a chunk of this package; tokens of TRL's


@dataclass(frozen=True)
class Count:
    """
    Work of a loss.

    Args:
        elementwise (`int`): Bytes for each token and vocabulary entry, with logits in bfloat16 where nothing else is
            said.
        products (`int`): Operations, in N H V.
        chunked (`str`, *optional*): Whose chunks the head's gradient is summed over.
    """

    elementwise: int
    products: int = FLOOR
    chunked: str | None = "own"

    def over_floor(self, h: int, v: int, bandwidth: float) -> float:
        """Time over the matrix products alone."""
        chunk = {"own": min(4096, OWN_LOGITS // (2 * 2 * v)), "TRL": TRL_CHUNK, None: float("inf")}[self.chunked]
        seconds = (self.elementwise + SUM_BYTES * h / chunk) / bandwidth  # for each token and entry
        return self.products / FLOOR + seconds * PRODUCT_RATE / (FLOOR * h)


COUNTS: dict[tuple[str, str], Count] = {
    (OURS, "forward_kl"): Count(14),
    (OURS, "reverse_kl"): Count(14),
    (OURS, "jsd"): Count(14),
    (UNCOMPILED, "forward_kl"): Count(178),
    (UNCOMPILED, "reverse_kl"): Count(166),
    (UNCOMPILED, "jsd"): Count(250),
    (FLOAT32, "forward_kl"): Count(34),  # with a cast of the gradient, 6 bytes, that a kernel would spare
    (TRITON, "forward_kl"): Count(10),
    (TRITON, "reverse_kl"): Count(10),
    (TRITON, "jsd"): Count(14),
    (TRL, "forward_kl"): Count(26, products=12, chunked="TRL"),
    (TRL, "reverse_kl"): Count(26, products=12, chunked="TRL"),
    (TRL, "jsd"): Count(34, products=16, chunked="TRL"),
    (FULL, "forward_kl"): Count(126, chunked=None),
}
