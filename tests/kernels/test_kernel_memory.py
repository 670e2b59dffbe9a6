# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
What `trl_opsd.kernels` promises beside its values: no (N, V) tensor, chunks within a budget, no wait for the device,
the same digits every time.

Legend: N tokens, H hidden size, V vocabulary, K views, C tokens of a chunk, T of a tile.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernel_cases import SPECS, Case, H, every_spec, make, tiles_of
from pairwise import pairwise
from trl_opsd.kernels import Head, PolicyTerm, chunks, label_scores


N, LARGE_V, C, T = 256, 300, 16, 4
# Operations that read a value back to the host, or whose result has a size that depends on values
SYNCS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique", "bincount")


class Watch(TorchDispatchMode):
    """
    Records operations, the entries of the largest result, and the most entries that were alive at a time.

    Args:
        given (`list[torch.Tensor]`): Tensors that were there before, which do not count.
    """

    def __init__(self, given: list[torch.Tensor]):
        super().__init__()
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.largest = self.peak = 0
        self.names: list[str] = []
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        masks = [x for x in tree_leaves(args[1:]) if isinstance(x, torch.Tensor) and x.dtype == torch.bool]
        # Indexing by a mask counts its entries
        self.names.append("nonzero" if name == "index" and masks else name)
        for tensor in (x for x in tree_leaves(result) if isinstance(x, torch.Tensor)):
            self.largest = max(self.largest, tensor.numel())
            storage = tensor.untyped_storage()
            if storage._cdata not in self.given:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes() // tensor.itemsize
        self.peak = max(self.peak, self.total())
        return result

    def total(self) -> int:
        """Entries that are alive."""
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        return sum(entries for _, entries in self.alive.values())

    def syncs(self) -> list[str]:
        return [name for name in self.names if name.startswith(SYNCS)]


def large(monkeypatch, k: int = 3, m: int = N, policy: bool = False, tile: int = T, **other) -> Case:
    tiles_of(monkeypatch, tile, LARGE_V)
    term = PolicyTerm(lambda logps, entropies: (logps.exp() - 0.1 * entropies).mean(), 1.2) if policy else None
    options = {"dtype": torch.float32, "chunk_size": C, "policy": term} | other
    return make(n=N, m=m, k=k, v=LARGE_V, **options)


def watched(case: Case, loss) -> Watch:
    given = [case.teacher_hidden, case.teacher_weight, case.teacher_bias, case.labels, case.weights, case.old_logps]
    with Watch([*given, *case.leaves()]) as watch:
        torch.autograd.grad(loss(), case.leaves())
    return watch


@every_spec
@pytest.mark.parametrize(("k", "m", "policy"), [(3, N, False), (1, N // 2, True)])
def test_no_tensor_of_all_logits(name, k, m, policy, monkeypatch):
    case = large(monkeypatch, k, m, policy, transform={"softcap": 5.0, "scale": 0.8})
    watch = watched(case, lambda: case.run(SPECS[name])[0])
    assert watch.largest <= max(C * LARGE_V, LARGE_V * H, k * N * H)
    # Chunks, a score of temporary tiles, the gradient of the head (with what is added to it), of the hidden states, and
    # statistics: nothing grows with N V
    most = (k + 1) * C * LARGE_V + (k + 20) * T * LARGE_V + 4 * (LARGE_V + N) * H + 16 * k * N
    assert watch.peak <= most < N * LARGE_V


def test_the_dense_loss_would_be_noticed(monkeypatch):
    case = large(monkeypatch)
    watch = watched(case, lambda: case.expected(SPECS["forward"])[0])
    assert watch.largest >= N * LARGE_V and watch.peak > 2 * N * LARGE_V
    # So would chunks that are kept until the end, though each is small
    parts = [slice(start, start + C) for start in range(0, N, C)]
    watch = watched(
        case, lambda: sum((case.hidden[rows] @ case.weight.T + case.bias).logsumexp(-1).sum() for rows in parts)
    )
    assert watch.largest < N * LARGE_V <= watch.peak


def test_the_policy_keeps_the_logits_of_a_single_chunk(monkeypatch):
    case = large(monkeypatch, k=1, policy=True, chunk_size=N)
    watch = watched(case, lambda: case.run(SPECS["forward"])[0])
    assert watch.largest == N * LARGE_V
    # Once for the student, in which the gradient is written, and once for the teacher
    assert watch.peak <= 2.3 * N * LARGE_V


@pytest.mark.parametrize("grad", [True, False])
def test_nothing_is_kept_for_backward_but_gradients(grad, monkeypatch):
    case = large(monkeypatch)
    with torch.set_grad_enabled(grad), Watch([case.teacher_hidden, *case.leaves()]) as watch:
        result = case.run(SPECS["union-tail"])
    statistics = 7 * 3 * N + 2 * N  # of "union-tail", which has all
    inputs = sum(x.numel() for x in (case.teacher_weight, case.teacher_bias, case.labels, case.weights, case.old_logps))
    gradients = sum(leaf.numel() for leaf in case.leaves()) if grad else 0
    assert result and watch.total() <= statistics + gradients + inputs + 10


def test_label_scores_hold_a_chunk(monkeypatch):
    case = large(monkeypatch)
    for limit in ("_CPU_TOKENS", "_TOKENS"):
        monkeypatch.setattr(chunks, limit, C)
    with Watch([*case.leaves(), case.labels]) as watch:
        label_scores(case.head().prepared(case.hidden), case.hidden, case.labels, 0.7)
    assert watch.largest <= C * LARGE_V and watch.peak <= (C + 8 * T) * LARGE_V + 8 * N
    assert not watch.syncs()


@pytest.mark.parametrize(
    ("name", "policy", "dtype"),
    pairwise(name=list(SPECS), policy=[False, True], dtype=[torch.float32, torch.float16]),
)
def test_no_wait_for_the_device(name, policy, dtype, monkeypatch):
    case = large(monkeypatch, k=2, m=N - 3, policy=policy, tile=60, dtype=dtype, chunk_size=100)
    for method in ("tolist", "numpy", "cpu"):  # which Watch cannot see
        monkeypatch.setattr(torch.Tensor, method, lambda *_: pytest.fail("a wait for the device"))
    with Watch(case.leaves()) as watch:
        loss = case.run(SPECS[name])[0]
    assert len(watch.names) > 50 and watch.syncs() == []
    assert loss.grad_fn is not None  # the backward pass is watched on a device, where it differs


def test_a_wait_would_be_noticed():
    values = torch.tensor([1.0, 2.0])
    for wait in (
        lambda: values.sum().item(),
        lambda: bool(values[0] > 0),
        lambda: values[values > 1],
        lambda: values.nonzero(),
    ):
        with Watch([]) as watch:
            wait()
        assert watch.syncs()


@every_spec
@pytest.mark.parametrize("policy", [False, True])
def test_the_same_digits_every_time(name, policy, monkeypatch):
    runs = []
    for _ in range(2):
        case = large(monkeypatch, k=2, m=N - 3, policy=policy, tile=20, chunk_size=50)
        loss, stats = case.run(SPECS[name])
        runs.append([loss, *stats.values(), *torch.autograd.grad(loss, case.leaves())])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("n", "v", "blocks", "device"),
    pairwise(n=[0, 1, 7, 255, 256, 257, 3000], v=[2, 300, 151_936], blocks=[1, 2, 4], device=["cpu", "cuda"]),
)
def test_chunks_cover_every_token_once_within_the_budget(n, v, blocks, device, monkeypatch):
    for budget in (None, 100_000, 1):
        if budget is not None:
            monkeypatch.setattr(chunks, "_CPU_BYTES", budget)
            monkeypatch.setattr(chunks, "_BYTES", budget)
        for dtype in (torch.float32, torch.bfloat16):
            cut = chunks.chunks(n, v, blocks, dtype, torch.device(device), None)
            assert [token for rows in cut for token in range(n)[rows]] == list(range(n))
            sizes = [rows.stop - rows.start for rows in cut]
            assert all(0 < size <= (256 if device == "cpu" else 4096) for size in sizes)
            allowed = budget or (320 * 2**20 if device == "cpu" else 2**30)
            assert all(size * v * blocks * dtype.itemsize <= allowed or size == 1 for size in sizes)
            # Of nearly equal size, and no more of them than needed. The first is the largest: memory is made for it
            assert not sizes or (sizes[0] == max(sizes) and sum(sizes[:-1]) == sizes[0] * (len(sizes) - 1))
            most = max(1, min(256 if device == "cpu" else 4096, allowed // (v * blocks * dtype.itemsize)))
            assert len(sizes) <= -(-n // most)


@pytest.mark.parametrize("policy", [False, True])
def test_the_budget_holds_all_logits_of_a_chunk(policy, monkeypatch):
    seen, projected, inner = tiles_of(monkeypatch, N, LARGE_V), [], Head.project
    monkeypatch.setattr(Head, "project", lambda *args: projected.append(len(args[1])) or inner(*args))
    for k in (1, 3):
        # Eight tokens of student and teachers, hence as many more where there are no teachers
        for limit in ("_CPU_BYTES", "_BYTES"):
            monkeypatch.setattr(chunks, limit, 8 * (k + 1) * LARGE_V * 4)
        case = make(n=N, m=N // 2, k=k, v=LARGE_V, dtype=torch.float32)
        case.policy = PolicyTerm(lambda logps, entropies: logps.mean(), 1.0) if policy else None
        case.run(SPECS["forward"])
        assert set(seen) == {8} and max(projected) == (8 * (k + 1) if policy else 8)
        distilled = [8] * (N // 16 * (k + 1))
        alone = -(-N // 2 // (8 * (k + 1)))
        scored = -(-N // (8 * (k + 1)))
        assert len(projected) == len(distilled) + (alone + scored if policy else 0)
        seen.clear(), projected.clear()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 11, 1000])
def test_chunks_of_a_given_size(size):
    for n in (0, 1, 10, 21):
        cut = chunks.chunks(n, 10**9, 9, torch.float32, torch.device("cpu"), size)
        assert [token for rows in cut for token in range(n)[rows]] == list(range(n))
        assert all(0 < rows.stop - rows.start <= size for rows in cut)


@pytest.mark.parametrize(("device", "entries"), [("cpu", 2**18), ("cuda", 2**23)])
@pytest.mark.parametrize("v", [2, 300, 151_936, 2**25])
def test_tiles_cover_every_row_once(v, device, entries):
    for rows in (0, 1, 5, 256, 4096):
        cut = list(chunks.tiles(rows, v, torch.device(device)))
        assert [row for tile in cut for row in range(rows)[tile]] == list(range(rows))
        assert all((tile.stop - tile.start) * v <= entries or tile.stop - tile.start == 1 for tile in cut)
        assert len(cut) == -(-rows // max(1, entries // v))


def test_chunk_size_changes_no_value(monkeypatch):
    case = large(monkeypatch, k=2, dtype=torch.float64)
    want, wants = case.run(SPECS["tail"])[0], case.gradients(SPECS["tail"])
    for size in (1, 33, N, None):
        other = replace(case, chunk_size=size)
        torch.testing.assert_close(other.run(SPECS["tail"])[0], want, rtol=1e-12, atol=0)
        for gradient, value in zip(other.gradients(SPECS["tail"]), wants, strict=True):
            torch.testing.assert_close(gradient, value, rtol=1e-9, atol=1e-12)
