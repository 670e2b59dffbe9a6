# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Contenders of the kernel benchmark: one loss from the same hidden states, computed in different ways.

Every one is a function of [`Inputs`] and a divergence and returns the mean over tokens of the divergence between the
student (hidden states and head weight, both with gradient) and the teacher (other hidden states, the same head without
gradient). Backward is part of what is timed.

Legend: N tokens, H hidden size, V vocabulary, K views.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from trl.kernels import chunked_divergence

from benchmarks.measure import Timed
from trl_opsd.kernels import fused_linear_divergence
from trl_opsd.losses import DivergenceSpec


try:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
except ImportError:
    LigerFusedLinearJSDLoss = None


BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}  # as GKD, Liger and TRL number them
KINDS = tuple(BETA)
OURS, FULL, GKD, LIGER, TRL = "ours", "full logits", "GKD-style", "Liger", "TRL chunked"


@dataclass
class Inputs:
    hidden: torch.Tensor  # (N, H)
    weight: torch.Tensor  # (V, H)
    teacher: torch.Tensor  # (K, N, H)
    labels: torch.Tensor  # (N,)

    def to(self, device: str) -> "Inputs":
        """Copy to a device, with gradients on and none there yet."""
        hidden, weight = (tensor.detach().to(device).requires_grad_() for tensor in (self.hidden, self.weight))
        return Inputs(hidden, weight, self.teacher.to(device), self.labels.to(device))

    def head(self, tokens: int) -> "Inputs":
        """The first tokens alone."""
        return Inputs(self.hidden[:tokens], self.weight, self.teacher[:, :tokens], self.labels[:tokens])


def make_inputs(n: int, h: int, v: int, k: int = 1, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Inputs:
    """Random inputs whose logits spread over a few nats, and teachers as far off as a context brings them."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)

    hidden, weight = normal(n, h), normal(v, h).mul_(1.5 / math.sqrt(h))
    teacher = hidden + 0.3 * normal(k, n, h)
    return Inputs(hidden, weight, teacher, torch.randint(v, (n,), generator=generator, device=device))


Loss = Callable[[Inputs, str], torch.Tensor]


def ours(x: Inputs, kind: str) -> torch.Tensor:
    spec = DivergenceSpec(alpha=BETA[kind])
    return fused_linear_divergence(x.hidden, x.weight, x.teacher, labels=x.labels, spec=spec)[0]


def divergence(log_p: torch.Tensor, log_q: torch.Tensor, kind: str) -> torch.Tensor:
    """Sum over tokens and vocabulary, as plain as it can be written."""
    if kind == "forward_kl":
        return F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    if kind == "reverse_kl":
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    halves = (F.kl_div(log_m, side, reduction="sum", log_target=True) for side in (log_p, log_q))
    return 0.5 * sum(halves)


def logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    product = hidden @ weight.T
    return product.to(torch.promote_types(product.dtype, torch.float32))


def dense(hidden: torch.Tensor, weight: torch.Tensor, teacher: torch.Tensor, kind: str) -> torch.Tensor:
    """The sum over tokens by plain autograd."""
    log_p = logits(hidden, weight).log_softmax(-1)
    with torch.no_grad():
        log_q = logits(teacher, weight).log_softmax(-1)
    return divergence(log_p, log_q, kind)


def full_logits(x: Inputs, kind: str) -> torch.Tensor:
    return dense(x.hidden, x.weight, x.teacher[0], kind) / len(x.hidden)


def gkd(x: Inputs, kind: str, temperature: float = 1.0) -> torch.Tensor:
    """The formula of GKD (Agarwal et al., 2024) in the order of operations that its public trainers share."""
    beta = BETA[kind]
    student = logits(x.hidden, x.weight) / temperature
    with torch.no_grad():
        teacher = logits(x.teacher[0], x.weight) / temperature
    log_p, log_q = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    if beta in (0.0, 1.0):
        first, second = (log_p, log_q) if beta == 0.0 else (log_q, log_p)
        loss = F.kl_div(first, second, reduction="none", log_target=True)
    else:
        log_m = torch.logsumexp(torch.stack([log_p + math.log(1 - beta), log_q + math.log(beta)]), dim=0)
        from_teacher = F.kl_div(log_m, log_q, reduction="none", log_target=True)
        from_student = F.kl_div(log_m, log_p, reduction="none", log_target=True)
        loss = beta * from_teacher + (1 - beta) * from_student
    return loss.sum() / len(loss)


def checkpointed(x: Inputs, kind: str, rows: int = 256) -> torch.Tensor:
    """Chunks of tokens whose logits are computed again in the backward pass."""
    total = 0.0
    for hidden, teacher in zip(x.hidden.split(rows), x.teacher[0].split(rows), strict=True):
        total = total + checkpoint(dense, hidden, x.weight, teacher, kind, use_reentrant=False)
    return total / len(x.hidden)


def liger(x: Inputs, kind: str) -> torch.Tensor:
    """Its chunked loss is plain torch. `compiled` is off: compilation would be timed too, and needs a C++ compiler."""
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA[kind], compiled=False)
    return loss(x.hidden, x.weight, x.teacher[0], x.weight.detach(), x.labels)


def trl_chunked(x: Inputs, kind: str) -> torch.Tensor:
    arguments = (x.hidden, x.weight, None, x.teacher[0], x.weight.detach(), None, BETA[kind])
    return chunked_divergence.ChunkedDivergenceFunction.apply(*arguments)[0].mean()


def trl_small_chunks(x: Inputs, kind: str) -> torch.Tensor:
    # Tiles of 256 x 8192 instead of 4096 x 32768, in the backward pass too
    before = chunked_divergence.TOKEN_CHUNK_SIZE, chunked_divergence.VOCAB_CHUNK_SIZE
    chunked_divergence.TOKEN_CHUNK_SIZE, chunked_divergence.VOCAB_CHUNK_SIZE = 256, 8192
    try:
        loss = trl_chunked(x, kind)
        loss.backward()
    finally:
        chunked_divergence.TOKEN_CHUNK_SIZE, chunked_divergence.VOCAB_CHUNK_SIZE = before
    return loss.detach()


LOSSES: dict[str, Loss] = {
    OURS: ours,
    FULL: full_logits,
    GKD: gkd,
    LIGER: liger,
    "checkpointed": checkpointed,
    TRL: trl_chunked,
    "TRL small tiles": trl_small_chunks,
}
if LigerFusedLinearJSDLoss is None:
    del LOSSES[LIGER]


def contender(loss: Loss, x: Inputs, kind: str) -> Callable[[], None]:
    """Loss and backward, from no gradients to gradients that are dropped again."""

    def run() -> None:
        x.hidden.grad = x.weight.grad = None
        value = loss(x, kind)
        if value.requires_grad:
            value.backward()
        x.hidden.grad = x.weight.grad = None

    return run


class Floor:
    """
    The matrix products alone, into memory that is there already: 2 + 2K of N x H x V, in the quickest of some chunks.

    Which chunk is quickest is found in the first run, whose time is that of the quickest.
    """

    def __init__(self, x: Inputs, chunks: tuple[int, ...] = (256, 512)):
        self.x, n = x, len(x.hidden)
        self.chunks = sorted({*(chunk for chunk in chunks if chunk < n), n})
        self.grads = torch.zeros_like(x.hidden), torch.zeros_like(x.weight)
        self.logits = torch.zeros(2, max(self.chunks), len(x.weight), dtype=x.hidden.dtype, device=x.hidden.device)

    def __call__(self) -> Timed:
        seconds = {chunk: self.products(chunk) for chunk in self.chunks}
        self.chunks = [min(seconds, key=seconds.get)]
        return Timed(min(seconds.values()))

    @torch.no_grad()
    def products(self, chunk: int) -> float:
        x, (grad_hidden, grad_weight) = self.x, self.grads
        start = time.perf_counter()
        for first in range(0, len(x.hidden), chunk):
            rows = slice(first, first + chunk)
            hidden = x.hidden[rows]
            student, teacher = self.logits[:, : len(hidden)]
            torch.mm(hidden, x.weight.T, out=student)
            for view in x.teacher:
                torch.mm(view[rows], x.weight.T, out=teacher)
            torch.mm(student, x.weight, out=grad_hidden[rows])
            grad_weight.addmm_(student.T, hidden)
        if x.hidden.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start
