# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
The loss on a CUDA device that is not there: no wait for the device, types of the products, and the kernels that
Inductor writes for it.

Legend: t tokens of a chunk, V vocabulary, K views.
"""

import re
from dataclasses import fields

import pytest
import torch
from torch.overrides import TorchFunctionMode

from faked_cuda import DEVICE, faked_cuda, generated, kernels, missing
from kernel_cases import SPECS, Case, every_spec, make
from trl_opsd.kernels import Head, PolicyTerm, compiled
from trl_opsd.kernels.tile import TilePlan, TileTokens, distilled_tile, label_score, policy_tile
from trl_opsd.losses import DivergenceSpec


needs_device = pytest.mark.skipif(missing(triton=False) is not None, reason=str(missing(triton=False)))
needs_triton = pytest.mark.skipif(missing(triton=True) is not None, reason=str(missing(triton=True)))
ROWS, V = 1766, 151_936  # a chunk of two logits in bfloat16


def on_device(case: Case) -> Case:
    for name, value in [(one.name, getattr(case, one.name)) for one in fields(case)]:
        if isinstance(value, torch.Tensor):
            setattr(case, name, value.detach().to(DEVICE).requires_grad_(value.requires_grad))
    return case


@needs_device
@every_spec
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_no_wait_for_the_device(name, dtype, monkeypatch):
    # Reading a value is an error here. The policy's own gradient would need the threads of autograd
    monkeypatch.setenv(compiled.SWITCH, "0")
    policy = PolicyTerm(lambda logps, entropies: logps.new_zeros(()), 0.8)
    with faked_cuda():
        case = on_device(make(dtype=dtype, n=12, m=9, chunk_size=4, policy=policy))
        loss, stats = case.run(SPECS[name])
        gradients = loss.grad_fn.apply(torch.ones((), device=DEVICE), *[None] * len(stats))
        for leaf, gradient in zip(case.leaves(), gradients, strict=False):
            assert (gradient.dtype, gradient.shape, gradient.device) == (dtype, leaf.shape, DEVICE)


@needs_device
def test_a_wait_would_be_noticed():
    with faked_cuda(), pytest.raises(Exception, match=r"item|data-dependent|local_scalar"):
        bool(torch.ones((), device=DEVICE) == 1)


@needs_device
def test_sums_over_chunks_in_half_precision_are_never_rounded(monkeypatch):
    monkeypatch.setenv(compiled.SWITCH, "0")
    with faked_cuda():
        case = on_device(make(dtype=torch.bfloat16, n=12, k=1, bias=False, chunk_size=4))
        with Products() as products:
            case.run(SPECS["forward"])
    # In each of three chunks the logits of both sides, and the gradients of hidden states and head
    assert products.types == [None, None, torch.float32, torch.float32] * 3


class Products(TorchFunctionMode):
    """Records the type that each matrix product is asked for."""

    def __init__(self):
        super().__init__()
        self.types: list[torch.dtype | None] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.mm, torch.addmm, torch.Tensor.addmm_, torch.Tensor.matmul):
            self.types.append(kwargs.get("out_dtype"))
        return func(*args, **kwargs)


# Loops over a row, reads of logits and writes of them by the largest kernel, which is the only one to touch them
FULL = {
    "forward KL": (3, 6, DivergenceSpec("forward_kl"), {}),
    "reverse KL": (3, 6, DivergenceSpec("reverse_kl"), {}),
    "jsd": (3, 6, DivergenceSpec("jsd", alpha=0.5), {}),
    "skew KL": (3, 6, DivergenceSpec("skew_kl", alpha=0.1), {}),
    "entry clip": (3, 6, DivergenceSpec("forward_kl", entry_clip=0.05), {}),
    "token clip": (3, 6, DivergenceSpec("forward_kl", token_clip=2.5), {}),
    "importance": (3, 6, DivergenceSpec("forward_kl", is_clip=1.2), {}),
    "four views": (3, 15, DivergenceSpec("forward_kl"), {"k": 4}),
    "mean of views": (3, 9, DivergenceSpec("reverse_kl", target="arithmetic"), {"k": 2}),
    "geometric mean": (4, 12, DivergenceSpec("jsd", alpha=0.3, target="geometric"), {"k": 2}),
    "with a policy": (5, 8, DivergenceSpec("forward_kl"), {"policy": 0.7}),
    # A division or a tanh keeps Inductor from finding maximum and sum of a softmax in one loop
    "temperature": (6, 9, DivergenceSpec("forward_kl", temperature=0.7), {}),
    "soft-cap": (6, 9, DivergenceSpec("forward_kl"), {"head": Head(None, softcap=30.0)}),
}


@needs_triton
@pytest.mark.parametrize("name", FULL)
def test_one_kernel_reads_and_writes_the_logits(name):
    loops, reads, spec, options = FULL[name]
    code = code_of(spec, **options)
    of_logits = {name: body for name, body in kernels(code).items() if str(V) in body}
    assert len(of_logits) == 1
    (body,) = of_logits.values()
    assert body.count(" in tl.range(") <= loops
    assert len(re.findall(rf"tl\.load\(\w+ \+ \(\w+ \+ {V}\*", body)) <= reads
    assert len(re.findall(rf"tl\.store\(\w+ \+ \(\w+ \+ {V}\*", body)) == 1
    assert f", {V}), " not in "".join(re.findall(r"empty_strided_cuda\(.*", code))  # written in place
    assert "'enable_fp_fusion': False" in code and "'enable_fp_fusion': True" not in code


@needs_triton
def test_score_and_policy_are_one_kernel_each():
    with faked_cuda():
        labels, factors, one = empty(ROWS, dtype=torch.long), empty(ROWS), empty(())
        score = inductor_code(label_score, logits(), labels, Head(None), 1.0)
        gradient = inductor_code(policy_tile, logits(), labels, factors, factors, one, Head(None), 1.0)
    for code, loops in ((score, 2), (gradient, 3)):
        (body,) = [body for body in kernels(code).values() if str(V) in body]
        assert body.count(" in tl.range(") <= loops


def code_of(spec: DivergenceSpec, k: int = 1, policy: float | None = None, head: Head | None = None) -> str:
    head = Head(None) if head is None else head
    with faked_cuda():
        plan = TilePlan(head, [head] * k, spec, [spec] * k, policy or 1.0, differentiate=True)
        tokens = TileTokens(empty(ROWS, dtype=torch.long), empty(k, ROWS), empty(ROWS))
        if policy:
            tokens = TileTokens(tokens.labels, tokens.weights, tokens.old_logps, empty(ROWS), empty(ROWS))
        return inductor_code(distilled_tile, logits(), [logits() for _ in range(k)], tokens, empty(()), empty(()), plan)


def inductor_code(function, *args) -> str:
    torch._dynamo.reset()
    return generated(lambda: compiled.compiled(function)(*args))


def logits() -> torch.Tensor:
    return empty(ROWS, V, dtype=torch.bfloat16)


def empty(*shape, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=DEVICE)
