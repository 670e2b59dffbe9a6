# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Formulas of the memory calculator: bytes on one GPU, part by part, with the phases of a step in which each is there.

tests/benchmarks/test_memory.py compares them with small models.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple


ENGINES = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp2")
TEACHERS = ("live", "base", "ema", "snapshot")
CHOICES = {"engine": ENGINES, "teacher": TEACHERS, "dtype": ("float32", "bfloat16")}
PHASES = ("generate", "teacher", "forward", "head", "backward", "step")
GENERATE, TEACHER, FORWARD, HEAD, BACKWARD, STEP = PHASES
# Of trl_opsd's kernels: bytes of a chunk's logits, most tokens of it, entries of a tile; and views of a teacher's pass
CHUNKS = {"cpu": (320 * 2**20, 256, 2**18), "cuda": (2**30, 4096, 2**23)}
VIEWS_OF_A_FORWARD = 4
# DeepSpeed's defaults, in parameters
REDUCE_BUCKET, LIVE_PARAMETERS, SUB_GROUP = 500_000_000, 1_000_000_000, 1_000_000_000
VLLM_OVERHEAD = 3e9  # assumed: CUDA graphs and activations of vLLM


@dataclass
class Shape:
    """Sizes of a dense decoder of the Llama kind; `qk_norm` is Qwen3's norm of queries and keys, biases are Qwen2's."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        h, i, q, k = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.query, self.key, self.head = q, k, self.vocabulary * h
        self.matrices = h * (2 * q + 2 * k + 3 * i)  # of a layer: q, k, v, o, gate, up, down
        norms = 2 * h + (2 * self.head_dim if self.qk_norm else 0)
        self.layer = self.matrices + norms + (q + 2 * k if self.qkv_bias else 0)
        self.parameters = self.layers * self.layer + h + self.head * (1 if self.tied else 2)
        self.adapter = self.layers * (7 * h + 2 * q + 2 * k + 3 * i)  # of LoRA on all matrices, for each rank
        self.kv_bytes = 4 * self.layers * k  # of a token's keys and values in bfloat16


@dataclass
class Run:
    """Settings of a training run, as `python -m benchmarks memory --help` explains them, and the types that follow."""

    shape: Shape
    engine: str = "zero3"
    gpus: int = 8
    gpu_gb: float = 80.0
    dtype: str = "float32"
    bf16: bool = True
    lora: int = 0
    teacher: str = "base"
    views: int = 1
    rows: int = 4
    accumulation: int = 8
    prompt: int = 512
    completion: int = 2048
    teacher_prompt: int = 1536
    checkpointing: bool = True
    vllm: bool = True
    tensor_parallel: int = 1
    sleep: bool = True
    device: str = "cuda"

    def __post_init__(self) -> None:
        if self.engine == "none" and self.gpus != 1:
            raise ValueError("`--engine none` is one process on one GPU: set `--gpus 1`, or choose another engine.")
        if self.gpus % self.tensor_parallel:
            raise ValueError(f"`--tensor-parallel {self.tensor_parallel}` must divide the {self.gpus} GPUs.")
        self.length = self.prompt + self.completion
        self.trained = self.lora * self.shape.adapter if self.lora else self.shape.parameters
        self.frozen = self.shape.parameters if self.lora else 0
        self.deepspeed, self.sharded = self.engine.startswith("zero"), self.engine in ("zero3", "fsdp2")
        self.weight_ranks = self.gpus if self.sharded else 1
        self.gradient_ranks = self.gpus if self.sharded or self.engine == "zero2" else 1
        self.optimizer_ranks = self.gpus if self.sharded or self.deepspeed else 1
        # Bytes of a number. DeepSpeed casts the model and keeps float32 copies in the optimizer; accelerate raises what
        # FSDP2 trains to float32, and PEFT raises adapters
        loaded, cast = (4 if self.dtype == "float32" else 2), (2 if self.bf16 else 4)
        raised = self.lora or (self.engine == "fsdp2" and self.bf16)
        self.trained_entry = cast if self.deepspeed else 4 if raised else loaded
        self.frozen_entry = cast if self.deepspeed else loaded
        self.optimizer_entry = 12 if self.deepspeed else 2 * self.trained_entry
        self.teacher_entry = 4 if self.teacher == "ema" else self.trained_entry
        self.entry = min(loaded, cast)
        # Autocast casts float32 weights for each product; its residual stream stays in the embedding's type
        self.autocast = self.entry < loaded and self.engine in ("none", "ddp")
        self.stream = 4 if self.autocast else self.entry
        # With a new adapter the `base` teacher is the model without it
        self.copied_teacher = self.teacher in ("ema", "snapshot") or (self.teacher == "base" and not self.lora)
        self.copied_head = self.copied_teacher and not self.lora
        # Casts of the layers' matrices, kept for the length of a forward
        self.casts = 2 * self.shape.layers * self.shape.matrices if self.autocast else 0


class Part(NamedTuple):
    """Bytes on one GPU, and the phases in which they are there. A name begins with its column of the tables."""

    name: str
    bytes: float
    phases: tuple[str, ...] = PHASES


def parts(run: Run) -> list[Part]:
    training = [*states(run), *teacher(run), *engine(run), *activations(run), *kernel(run)]
    return training + (vllm(run, training) if run.vllm else [])


def at(found: list[Part], phase: str) -> float:
    return sum(part.bytes for part in found if phase in part.phases)


def peak(found: list[Part]) -> tuple[float, str]:
    """Most bytes of any phase, and the phase."""
    return max((at(found, phase), phase) for phase in PHASES)


def states(run: Run) -> list[Part]:
    """Weights, gradients and optimizer."""
    weights = (run.trained * run.trained_entry + run.frozen * run.frozen_entry) / run.weight_ranks
    return [
        Part("weights", weights),
        # Freed after a step, but for ZeRO's; counted throughout
        Part("gradients", run.trained * run.trained_entry / run.gradient_ranks),
        Part("optimizer", run.trained * run.optimizer_entry / run.optimizer_ranks),
    ]


def teacher(run: Run) -> list[Part]:
    """Copies of the trained weights, what lending them takes, and the teacher's forward."""
    tokens = run.rows * min(run.views, VIEWS_OF_A_FORWARD) * (run.teacher_prompt + run.completion)
    answer = run.views * run.rows * run.completion * run.shape.hidden * run.entry
    at_work = tokens * inference_per_token(run, run.teacher_prompt + run.completion)
    other_type = run.teacher_entry != run.trained_entry
    share = run.trained / run.weight_ranks if run.copied_teacher else 0
    # FSDP2 keeps the student's part aside; other engines cast a teacher of another type
    lent = share * run.trained_entry if run.engine == "fsdp2" or other_type else 0
    gathers = run.copied_head and (run.sharded or other_type)
    head = run.shape.head * (run.entry if run.engine == "fsdp2" else run.trained_entry) if gathers else 0
    return [
        Part("teacher", share * run.teacher_entry),
        Part("teacher: lending", lent, (TEACHER,)),
        Part("activations: teacher", at_work, (TEACHER,)),
        Part("teacher: hidden states", answer, (TEACHER, FORWARD, HEAD)),
        Part("teacher: head", head, (HEAD,)),
    ]


def engine(run: Run) -> list[Part]:
    """Buckets, gathered weights and casts."""
    shape, trained, made = run.shape, run.trained, []
    forwards = (TEACHER, FORWARD, HEAD, BACKWARD)
    if run.engine == "ddp":  # buckets beside the gradients: accelerate leaves `gradient_as_bucket_view` off
        made.append(Part("engine: gradient buckets", trained * run.trained_entry))
    if run.deepspeed:
        made.append(Part("engine: gradient buckets", min(trained, REDUCE_BUCKET) * run.entry, (BACKWARD,)))
        share = trained / run.optimizer_ranks
        made.append(Part("optimizer: float32 gradients", 4 * min(share, SUB_GROUP if run.sharded else share), (STEP,)))
    if run.engine == "zero3":
        made.append(Part("engine: gathered weights", min(shape.parameters, LIVE_PARAMETERS) * run.entry, forwards))
    if run.engine == "fsdp2":  # the layer at work and the next; embedding and head are one unit
        units = (2 * shape.layer + shape.head * (1 if shape.tied else 2)) * run.entry
        made.append(Part("engine: gathered weights", units, forwards))
        buckets = 2 * run.trained / shape.layers * 4 if run.lora else units
        made.append(Part("engine: gradient buckets", buckets, (BACKWARD,)))
    if run.vllm and run.sharded:
        # TRL hands over one parameter at a time, but under ZeRO-3 it gathers a model with an adapter whole to merge it
        whole = shape.parameters if run.lora and run.engine == "zero3" else shape.head
        made.append(
            Part("engine: weight sync", whole * (run.frozen_entry if run.lora else run.trained_entry), (GENERATE,))
        )
    return made


def saved_per_token(run: Run) -> float:
    """Bytes that one layer keeps of a token for its backward, with `sdpa` and a padding mask, which repeats keys."""
    shape, b = run.shape, run.entry
    hidden = 26 if run.autocast else 16 if b == 2 else 24
    qk_norm = (4 + b) * (shape.query + shape.key) + 4 * (shape.heads + shape.kv_heads) if shape.qk_norm else 0
    attention = 4 * b * shape.query + 4 * shape.heads + b * run.length
    return hidden * shape.hidden + 8 + qk_norm + attention + 4 * b * shape.intermediate


def inference_per_token(run: Run, length: int) -> float:
    """Most that a forward which keeps nothing holds of a token of a row of `length`: in the MLP or in the attention."""
    shape, b = run.shape, run.entry
    mlp = 3 * b * shape.intermediate + 2 * (run.stream + b) * shape.hidden
    attention = b * (4 * shape.query + 2 * shape.key + length) + (2 * run.stream + b) * shape.hidden
    return max(mlp, attention) + length  # the mask


def activations(run: Run) -> list[Part]:
    """Activations of the student, and autocast's casts in both forwards."""
    shape, tokens, s = run.shape, run.rows * run.length, run.stream
    last_norm = tokens * ((8 if s == 4 else 6) * shape.hidden + 12)  # and the ids
    gradients = 2 * run.entry * shape.intermediate
    if run.checkpointing:  # inputs of the layers, and one layer again in full
        saved = tokens * shape.layers * s * shape.hidden
        backward = tokens * (gradients + saved_per_token(run)) + run.casts / shape.layers
        forward = tokens * (inference_per_token(run, run.length) - s * shape.hidden)  # its stream is the kept input
    else:
        rotary = 2 * shape.head_dim * s * run.length
        saved = tokens * shape.layers * saved_per_token(run) + rotary + run.casts
        backward, forward = tokens * max(gradients, 20 * shape.hidden), 0
    return [
        Part("activations: kept for backward", saved, (FORWARD, HEAD, BACKWARD)),
        Part("activations: last norm", last_norm, (HEAD, BACKWARD)),
        Part("activations: at work, forward", forward, (FORWARD,)),
        Part("activations: at work, backward", backward, (BACKWARD,)),
        Part("engine: casts of weights", run.casts, (TEACHER, FORWARD, HEAD) if run.checkpointing else (TEACHER,)),
    ]


def chunk(run: Run) -> int:
    """Tokens of a chunk of the kernel, as the kernel cuts them."""
    room, most, _ = CHUNKS[run.device]
    tokens = run.rows * run.completion
    size = max(1, min(most, room // ((run.views + 1) * run.shape.vocabulary * run.entry)))
    return math.ceil(tokens / math.ceil(tokens / size))


def kernel(run: Run) -> list[Part]:
    """Buffers of `fused_linear_divergence` for a full-vocabulary forward KL, and the gradients that it forms."""
    shape, b, views, size = run.shape, run.entry, run.views, chunk(run)
    tile = min(size, max(1, CHUNKS[run.device][2] // shape.vocabulary))
    elementwise = (5 + 3 * views) * tile * shape.vocabulary * 4
    product = shape.head * b if b < 4 and not run.lora else 0  # added to the head's gradient by each chunk
    logits = (views + 1) * size * shape.vocabulary * b
    # The student's head is cast and, where it is another one, the teacher's; FSDP2 gathers them cast
    stored = run.frozen_entry if run.lora else run.trained_entry
    cast = (2 if run.copied_head else 1) * shape.head * b if stored != b and run.engine != "fsdp2" else 0
    hidden_states = (4 + 2 * b) * run.rows * run.completion * shape.hidden  # gradient, those given, and those picked
    return [
        Part("kernel: logits of a chunk", logits + max(elementwise, product), (HEAD,)),
        Part("kernel: head's gradient", 0 if run.lora else 4 * shape.head, (HEAD, BACKWARD)),
        Part("kernel: casts of the heads", cast, (HEAD,)),
        Part("kernel: hidden states", hidden_states, (HEAD, BACKWARD)),
    ]


def vllm(run: Run, training: list[Part]) -> list[Part]:
    """vLLM on the GPUs that train, with room for all rollouts of a step or with what is free."""
    phases = (GENERATE,) if run.sleep else PHASES
    weights = run.shape.parameters * 2 / run.tensor_parallel
    needed = weights + VLLM_OVERHEAD + run.rows * run.accumulation * run.shape.kv_bytes * run.length
    free = run.gpu_gb * 1e9 - max(at(training, phase) for phase in phases)
    return [
        Part("vLLM weights", weights, phases),
        Part("KV cache", max(min(needed, free) - weights, 0), phases),
    ]


def concurrency(run: Run, found: list[Part]) -> int:
    """Rollouts that an engine of vLLM generates at a time; 0 where its own weights do not fit."""
    cache = sum(part.bytes for part in found if part.name == "KV cache") - VLLM_OVERHEAD
    at_once = round(cache // (run.shape.kv_bytes * run.length / run.tensor_parallel))
    return max(0, min(run.rows * run.accumulation * run.tensor_parallel, at_once))
