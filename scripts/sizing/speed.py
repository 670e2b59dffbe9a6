# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Seconds of an optimizer step, part by part, from operations, bytes and stated rates. Nothing here is measured.

Legend: as in `memory`; P parameters in the matrices of the body, R rows of a rank in a step.
"""

import math
from dataclasses import dataclass

from sizing.memory import VIEWS_OF_A_FORWARD, concurrency, engine_rollouts
from sizing.setup import Setup


@dataclass(frozen=True)
class Hardware:
    """
    Rates of a GPU and its links, by default an H100 SXM's by its data sheet, and the shares of them that are assumed.

    Args:
        flops (`float`): Operations a second in bfloat16, dense.
        memory (`float`): Bytes a second.
        nvlink (`float`): Bytes a second to GPUs of the same node, one way.
        network (`float`): Bytes a second to other nodes, one way, a GPU: 400 Gb/s.
        use_of_flops, use_of_memory, use_of_links (`float`): Shares that large work reaches.
    """

    flops: float = 989e12
    memory: float = 3.35e12
    nvlink: float = 450e9
    network: float = 50e9
    use_of_flops: float = 0.4
    use_of_memory: float = 0.6
    use_of_links: float = 0.7


@dataclass(frozen=True)
class Span:
    """Seconds of one part of a step, and what bounds them."""

    name: str
    seconds: float
    bound: str


def spans(setup: Setup, hardware: Hardware) -> list[Span]:
    """Parts of a step, one after another; within a part, what is slower hides what is quicker."""
    made = [] if setup.vllm == "none" else [generation(setup, hardware), weight_sync(setup, hardware)]
    return [*made, teacher(setup, hardware), student(setup, hardware), head(setup, hardware), update(setup, hardware)]


def tokens_per_second(setup: Setup, hardware: Hardware) -> float:
    """Completion tokens a second, all GPUs together, of whole steps."""
    return setup.rollouts * setup.completion / sum(span.seconds for span in spans(setup, hardware))


def slowest(setup: Setup, hardware: Hardware) -> Span:
    return max(spans(setup, hardware), key=lambda span: span.seconds)


def _longer(name: str, **seconds: float) -> Span:
    bound = max(seconds, key=seconds.__getitem__)
    return Span(name, seconds[bound], bound)


def _compute(flops: float, hardware: Hardware) -> float:
    return flops / (hardware.flops * hardware.use_of_flops)


def _memory(size: float, hardware: Hardware) -> float:
    return size / (hardware.memory * hardware.use_of_memory)


def collective(setup: Setup, size: float, hardware: Hardware) -> float:
    """Seconds of an all-gather or a reduce-scatter of `size` bytes over the training ranks, half of an all-reduce."""
    ranks = setup.ranks
    if ranks == 1:
        return 0.0
    # NCCL's rings leave a node through all of its cards
    across = hardware.network * setup.gpus_per_node if setup.nodes > 1 else math.inf
    return size * (ranks - 1) / ranks / (min(hardware.nvlink, across) * hardware.use_of_links)


def generation(setup: Setup, hardware: Hardware) -> Span:
    """
    vLLM's decoding: each token reads the weights and the keys and values of all rollouts under way, half of their
    completions long on average. Prompts are read once, without the prefix cache that a group would share.
    """
    shape, wave = setup.shape, max(concurrency(setup), 1)
    total = engine_rollouts(setup)
    waves = math.ceil(total / wave)
    context = shape.kv_bytes(setup.prompt + setup.completion // 2) * total / waves
    read = waves * setup.completion * (2 * shape.parameters + context) / setup.tensor_parallel
    flops = 2 * (shape.matrices + shape.head) * total * setup.completion / setup.tensor_parallel
    prefill = 2 * shape.matrices * total * setup.prompt / setup.tensor_parallel
    decoding = _longer("generation", memory=_memory(read, hardware), compute=_compute(flops, hardware))
    return Span("generation", decoding.seconds + _compute(prefill, hardware), decoding.bound)


def weight_sync(setup: Setup, hardware: Hardware) -> Span:
    """Weights gathered where they are in parts, and sent to a server over the network."""
    entry = setup.frozen_entry if setup.lora else setup.trained_entry
    size = setup.shape.parameters * entry
    gathered = collective(setup, size, hardware) if setup.shards_weights else 0.0
    sent = size / (hardware.network * hardware.use_of_links) if setup.vllm == "server" else 0.0
    return _longer("weight sync", links=gathered + sent, memory=_memory(2 * size, hardware))


def body_flops(setup: Setup, length: int) -> float:
    """Forward of the body over one row: 2 P for each token, and the causal half of the attention."""
    return 2 * setup.shape.matrices * length + 2 * setup.shape.layers * setup.shape.query * length**2


def teacher(setup: Setup, hardware: Hardware) -> Span:
    """K forwards over the longer prompt. A context that a group shares is read for each row here, the worst case."""
    rows = setup.rows * setup.accumulation * setup.views
    flops = rows * body_flops(setup, setup.teacher_prompt + setup.completion)
    forwards = setup.accumulation * math.ceil(setup.views / VIEWS_OF_A_FORWARD)
    moved = forwards * _gathered(setup)
    return _longer("teacher", compute=_compute(flops, hardware), links=collective(setup, moved, hardware))


def student(setup: Setup, hardware: Hardware) -> Span:
    """
    Forward, backward, and the forward again with checkpointing. The backward of a frozen matrix is one product, not
    two. Sharded weights are gathered for forward and backward; gradients are reduced.
    """
    rows = setup.rows * setup.accumulation
    forwards = (2 if setup.lora else 3) + (1 if setup.checkpointing else 0)
    flops = rows * forwards * body_flops(setup, setup.length)
    gradients = setup.trained * (setup.entry if setup.deepspeed or setup.engine == "fsdp2" else setup.trained_entry)
    # With weights in parts, and ZeRO-2's gradients, each micro-batch is reduced
    each = setup.accumulation if setup.shards_weights or setup.engine == "zero2" else 1
    both = 2 if setup.engine == "ddp" else 1  # all-reduce
    moved = 2 * setup.accumulation * _gathered(setup) + each * both * gradients
    return _longer("student", compute=_compute(flops, hardware), links=collective(setup, moved, hardware))


def _gathered(setup: Setup) -> float:
    """Bytes of the weights that a forward gathers."""
    return setup.shape.parameters * setup.entry if setup.shards_weights else 0


def head(setup: Setup, hardware: Hardware) -> Span:
    """Two logit products, one more for each further view, and the gradients': 8 N H V, or 6 with a frozen head."""
    tokens = setup.rows * setup.accumulation * setup.completion
    products = 1 + setup.views + (1 if setup.lora else 2)
    return Span("head", _compute(2 * products * tokens * setup.shape.head, hardware), "compute")


def update(setup: Setup, hardware: Hardware) -> Span:
    """AdamW reads and writes weight and averages and reads the gradient; ZeRO-1 and 2 then gather the weights."""
    share = setup.trained / setup.optimizer_ranks
    touched = share * (2 * setup.optimizer_entry + 2 * setup.trained_entry + setup.trained_entry)
    gathered = setup.trained * setup.trained_entry if setup.engine in ("zero1", "zero2") else 0
    return _longer("update", memory=_memory(touched, hardware), links=collective(setup, gathered, hardware))
