# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The formulas of `memory` beside what small models take here, part by part, in bytes of tensors."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from sizing import memory
from sizing.setup import Setup
from sizing.shapes import SHAPES, Shape
from trl_opsd.engines import Unsharded
from trl_opsd.kernels import fused_linear_divergence
from trl_opsd.teacher.weights import CopiedWeights


# Of three families: with normalised queries, with biases, with a head of its own; hidden and MLP in different ratios
SMALL = {
    "qwen3": Shape("small Qwen3", 6, 192, 512, 8, 2, 32, 4096, tied=True, qk_norm=True),
    "qwen2": Shape("small Qwen2", 4, 256, 1280, 8, 4, 32, 2000, tied=True, qkv_bias=True),
    "llama": Shape("small Llama", 5, 320, 640, 5, 5, 64, 3000),
}
RUN = {"engine": "none", "gpus_per_node": 1, "vllm": "none", "device": "cpu", "rows": 3, "prompt": 40, "completion": 88}
TYPES = {
    "float32": {"dtype": "float32", "bf16": False},
    "bfloat16": {"dtype": "bfloat16", "bf16": False},
    "autocast": {"dtype": "float32", "bf16": True},
}


@dataclass(frozen=True)
class Check:
    """
    A formula beside a measurement.

    Args:
        what (`str`): What is compared.
        computed, measured (`float`): Bytes, or parameters.
        tolerance (`float`): By how much of the measurement they may differ; 0 for counts that are exact.
    """

    what: str
    computed: float
    measured: float
    tolerance: float = 0.0

    @property
    def deviation(self) -> float:
        return self.computed / self.measured - 1

    @property
    def holds(self) -> bool:
        return abs(self.deviation) <= self.tolerance


class LiveBytes(TorchDispatchMode):
    """Most bytes of tensors that were alive at a time, beside those that were there before."""

    def __init__(self, given: list[torch.Tensor]):
        super().__init__()
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in (x for x in tree_leaves(result) if isinstance(x, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.given:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def build(family: str, shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PreTrainedModel:
    """A model of this shape, with random weights."""
    config = AutoConfig.for_model(
        family,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).train()


def total(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def parameters() -> Iterator[Check]:
    for shape in SHAPES.values():
        model = build("qwen3", shape, device="meta")
        yield Check(f"{shape.name}: parameters", shape.parameters, sum(p.numel() for p in model.parameters()))
    for family, shape in SMALL.items():
        model = build(family, shape, device="meta")
        yield Check(f"{shape.name}: parameters", shape.parameters, sum(p.numel() for p in model.parameters()))
        adapted = get_peft_model(model, LoraConfig(r=6, target_modules="all-linear"))
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        yield Check(f"{shape.name}: parameters of an adapter", shape.adapter(6), trained)


def states() -> Iterator[Check]:
    """Weights, gradients and AdamW after a step, and the teacher's copies."""
    for family, shape in SMALL.items():
        for name in ("float32", "bfloat16"):
            setup = Setup(shape, **RUN, **TYPES[name])
            weights, gradients, adam = (part.bytes for part in memory.states(setup))
            model = build(family, shape, getattr(torch, name))
            optimizer = torch.optim.AdamW(model.parameters())
            model(input_ids=torch.ones(1, 2, dtype=torch.long)).logits.sum().backward()
            optimizer.step()
            moments = (v for state in optimizer.state.values() for v in state.values() if v.ndim)
            yield Check(f"{shape.name}, {name}: weights", weights, total(model.parameters()))
            yield Check(f"{shape.name}, {name}: gradients", gradients, total(p.grad for p in model.parameters()))
            yield Check(f"{shape.name}, {name}: AdamW", adam, total(moments))
            for kind in ("base", "ema"):
                copied = replace(setup, teacher=kind)
                teacher = CopiedWeights(model, Unsharded(), torch.float32 if kind == "ema" else None, False)
                teacher.attach()
                held = total(teacher.copies.values())
                yield Check(f"{shape.name}, {name}: `{kind}` teacher", memory.teacher(copied)[0].bytes, held)
                if memory.lending(copied):
                    given = [*model.parameters(), *teacher.copies.values()]
                    with LiveBytes(given) as live, teacher.active(model):
                        pass
                    yield Check(f"{shape.name}, {name}: lending `{kind}`", memory.lending(copied), live.peak)


def kv_cache() -> Iterator[Check]:
    for family, shape in SMALL.items():
        model, cache = build(family, shape, torch.bfloat16), DynamicCache()
        with torch.no_grad():
            model(input_ids=torch.ones(3, 17, dtype=torch.long), past_key_values=cache, use_cache=True)
        held = total(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))
        yield Check(f"{shape.name}: KV cache", shape.kv_bytes(3 * 17), held)


def inputs(setup: Setup, length: int) -> dict[str, torch.Tensor]:
    """Rows of which one is padded on the left."""
    ids = torch.ones(setup.rows, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def run_body(model: PreTrainedModel, setup: Setup, grad: bool, keep: Callable | None = None) -> torch.Tensor:
    """Forward of the body on a micro-batch, of the teacher's length without gradient."""
    length = setup.length if grad else setup.teacher_prompt + setup.completion
    model.base_model.gradient_checkpointing = False
    if setup.checkpointing and grad:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x) if keep else nullcontext()
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16, enabled=setup.autocast), hooks:
        return model.base_model(**inputs(setup, length), use_cache=False).last_hidden_state


def saved_bytes(model: PreTrainedModel, setup: Setup) -> int:
    """Bytes that autograd keeps of a forward, weights apart."""
    own = {param.untyped_storage()._cdata for param in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    output = run_body(model, setup, grad=True, keep=keep)
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def body_peak(model: PreTrainedModel, setup: Setup, grad: bool) -> int:
    """Most bytes alive in the body's forward, and backward, beside weights and gradients."""
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    dtype = torch.float32 if setup.stream == 4 else torch.bfloat16
    upstream = torch.ones(setup.rows, setup.length, setup.shape.hidden, dtype=dtype)
    own = [upstream, *model.parameters(), *(param.grad for param in model.parameters())]
    with LiveBytes(own) as live:
        output = run_body(model, setup, grad)
        if grad:
            output.backward(upstream)
    return live.peak


def activations() -> Iterator[Check]:
    """Saved tensors and peaks of the body: student with and without checkpointing, teacher."""
    for family, shape in SMALL.items():
        for name, types in TYPES.items():
            model = build(family, shape, getattr(torch, types["dtype"]))
            for checkpointing in (False, True):
                setup = Setup(shape, **RUN, **types, checkpointing=checkpointing)
                what = f"{shape.name}, {name}{', checkpointing' if checkpointing else ''}"
                computed = memory.saved(setup) + memory.saved_last(setup)
                yield Check(f"{what}: kept for backward", computed, saved_bytes(model, setup))
                parts = memory.activations(setup)
                phases = [sum(part.bytes for part in parts if at in part.phases) for at in memory.PHASES]
                kind, tolerance = ("with checkpointing", 0.06) if checkpointing else ("everything kept", 0.005)
                measured = body_peak(model, setup, grad=True)
                yield Check(f"{what}: peak of the student's body, {kind}", max(phases), measured, tolerance)
            setup = replace(setup, teacher="live", teacher_prompt=72)
            computed = memory.teacher(setup)[2].bytes + memory.casts(setup)
            yield Check(
                f"{shape.name}, {name}: peak of the teacher's body", computed, body_peak(model, setup, grad=False), 0.06
            )


def kernel() -> Iterator[Check]:
    """Peak of loss and backward above their inputs."""
    for views in (1, 2):
        for dtype in ("float32", "bfloat16"):
            shape = Shape("head", 1, 64, 1, 1, 1, 1, 30_000)
            setup = Setup(shape, **{**RUN, **TYPES[dtype], "rows": 4, "completion": 150, "views": views})
            kind = getattr(torch, dtype)
            hidden = torch.randn(4 * 150, shape.hidden, dtype=kind, requires_grad=True)
            weight = torch.randn(shape.vocabulary, shape.hidden, dtype=kind, requires_grad=True)
            teacher = torch.randn(views, 4 * 150, shape.hidden, dtype=kind)
            with LiveBytes([hidden, weight, teacher]) as live:
                fused_linear_divergence(hidden, weight, teacher)[0].backward()
            # The hidden states of the completion are inputs here
            given = 2 * setup.entry * hidden.numel()
            computed = sum(part.bytes for part in memory.kernel(setup)) - given
            yield Check(f"kernel, {views} view{'s' if views > 1 else ''}, {dtype}", computed, live.peak, 0.01)


def all_checks() -> list[Check]:
    """Every comparison within one process."""
    return [check for part in (parameters, states, kv_cache, activations, kernel) for check in part()]
