# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Memory formulas: bytes on one GPU by part, and the phases of a step that have each part. They need no torch."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from trl_opsd.memory.shapes import Shape


ENGINES = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp2")
PHASES = ("generate", "teacher", "forward", "head", "backward", "step")
GENERATE, TEACHER, FORWARD, HEAD, BACKWARD, STEP = PHASES
# Of trl_opsd's kernels: bytes of a chunk's logits, most tokens of it, entries of a tile; and views of a teacher's pass
CHUNKS = {"cpu": (320 * 2**20, 256, 2**18), "cuda": (2**30, 4096, 2**23)}
COMPILED_ROWS = 264  # of a chunk, from which its elementwise work on a GPU is one kernel without arrays of its own
VIEWS_OF_A_FORWARD = 4
REDUCE_BUCKET, LIVE_PARAMETERS, SUB_GROUP = 5e8, 1e9, 1e9  # DeepSpeed's defaults, in parameters
VLLM_OVERHEAD = 3e9  # assumed: CUDA graphs and activations of vLLM


@dataclass
class Run:
    """
    Settings of a training run, and the types and shares that follow from them.

    Args:
        shape ([`Shape`]): Sizes of the model.
        engine (`str`): One of `ENGINES`; `"none"` is one process.
        gpus (`int`): GPUs that train.
        gpu_gb (`float`): Memory of a GPU, GB.
        dtype (`str`): Type of the loaded model, `"float32"` or a half precision.
        bf16 (`bool`): Whether products are in half precision (`bf16`, `fp16`).
        lora (`int`): Rank of an adapter on all matrices of the layers, 0 for none.
        teacher (`str`): `teacher_model_kind`. Adapters are too small to count.
        views (`int`): Views of a rollout.
        rows (`int`): `per_device_train_batch_size`.
        accumulation (`int`): Micro-batches of a generation batch: `steps_per_generation`.
        iterations (`int`): `num_iterations`.
        prompt, completion (`int`): Tokens of a prompt and of a completion.
        teacher_prompt (`int`): Tokens of the teacher's prompt, with the context.
        checkpointing (`bool`): `gradient_checkpointing`.
        vllm (`bool`): Whether vLLM is on the same GPUs; otherwise transformers generates, or a server.
        server (`bool`): Whether a vLLM server on other GPUs generates.
        tensor_parallel (`int`): `vllm_tensor_parallel_size`.
        sleep (`bool`): `vllm_enable_sleep_mode`.
        utilization (`float`): `vllm_gpu_memory_utilization`; 0 for what the rollouts of a generation batch need.
        gather (`bool`): `ds3_gather_for_generation`.
        device (`str`): `"cpu"` or `"cuda"`, for the chunk sizes of the kernel.
    """

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
    iterations: int = 1
    prompt: int = 512
    completion: int = 2048
    teacher_prompt: int = 1536
    checkpointing: bool = True
    vllm: bool = True
    server: bool = False
    tensor_parallel: int = 1
    sleep: bool = True
    utilization: float = 0.0
    gather: bool = True
    device: str = "cuda"

    def __post_init__(self) -> None:
        if self.engine == "none" and self.gpus != 1:
            raise ValueError(f"one process without an engine trains on one GPU, not on {self.gpus}.")
        if self.gpus % self.tensor_parallel:
            raise ValueError(f"`vllm_tensor_parallel_size={self.tensor_parallel}` must divide the {self.gpus} GPUs.")
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
        self.copied_teacher = self.teacher not in ("live", "adapters") and not (self.teacher == "base" and self.lora)
        self.copied_head = self.copied_teacher and not self.lora
        # Casts of the layers' matrices, kept for the length of a forward
        self.casts = 2 * self.shape.layers * self.shape.matrices if self.autocast else 0


class Part(NamedTuple):
    """Bytes on one GPU, and the phases in which they are there. A name begins with its column of the tables."""

    name: str
    bytes: float
    phases: tuple[str, ...] = PHASES


def parts(run: Run) -> list[Part]:
    """Parts of a run. Those of vLLM come last, as they may take what the others leave."""
    training = [*states(run), *teacher(run), *engine(run), *activations(run), *kernel(run)]
    if run.vllm:
        return training + vllm(run, training)
    return training if run.server else training + generation(run)


def at(found: list[Part], phase: str) -> float:
    return sum(part.bytes for part in found if phase in part.phases)


def peak(found: list[Part]) -> tuple[float, str]:
    """Most bytes of any phase, and the phase."""
    return max((at(found, phase), phase) for phase in PHASES)


def states(run: Run) -> list[Part]:
    """Weights, gradients and optimizer; gradients count throughout, though most engines free them after a step."""
    weights = (run.trained * run.trained_entry + run.frozen * run.frozen_entry) / run.weight_ranks
    return [
        Part("weights", weights),
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
    # Of all micro-batches of a generation batch, from the first pass over them to the last
    kept = run.accumulation * answer if run.iterations > 1 and run.teacher != "live" else 0
    head = run.shape.head * (run.entry if run.engine == "fsdp2" else run.trained_entry) if gathers else 0
    return [
        Part("teacher", share * run.teacher_entry),
        Part("teacher: lending", lent, (TEACHER,)),
        Part("activations: teacher", at_work, (TEACHER,)),
        Part("teacher: hidden states", answer, (TEACHER, FORWARD, HEAD)),
        Part("teacher: kept hidden states", kept, (TEACHER, FORWARD, HEAD, BACKWARD, STEP)),
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
        units = (2 * shape.layer + shape.heads_held) * run.entry
        made.append(Part("engine: gathered weights", units, forwards))
        buckets = 2 * run.trained / shape.layers * 4 if run.lora else units
        made.append(Part("engine: gradient buckets", buckets, (BACKWARD,)))
    if run.vllm and run.sharded:
        # TRL hands over one parameter at a time, but under ZeRO-3 it gathers a model with an adapter whole to merge it
        whole = shape.parameters if run.lora and run.engine == "zero3" else shape.head
        entry = run.frozen_entry if run.lora else run.trained_entry
        made.append(Part("engine: weight sync", whole * entry, (GENERATE,)))
    return made


def inference_per_token(run: Run, length: int) -> float:
    """Most that a forward which keeps nothing holds of a token of a row of `length`: in the MLP or in the attention."""
    shape, b = run.shape, run.entry
    mlp = 3 * b * shape.intermediate + 2 * (run.stream + b) * shape.hidden
    attention = b * (4 * shape.query + 2 * shape.key + length) + (2 * run.stream + b) * shape.hidden
    return max(mlp, attention) + length  # the mask


def activations(run: Run) -> list[Part]:
    """Activations of the student under `sdpa` with a padding mask, and autocast's casts in both forwards."""
    shape, tokens, s, b = run.shape, run.rows * run.length, run.stream, run.entry
    # Kept of a token by one layer, which repeats keys; and gradients under way
    qk_norm = (4 + b) * (shape.query + shape.key) + 4 * (shape.heads + shape.kv_heads) if shape.qk_norm else 0
    attention = 4 * b * shape.query + 4 * shape.heads + b * run.length
    streams = (26 if run.autocast else 16 if b == 2 else 24) * shape.hidden + 8
    of_a_layer = streams + qk_norm + attention + 4 * b * shape.intermediate
    last_norm = tokens * ((8 if s == 4 else 6) * shape.hidden + 12)  # and the ids
    gradients = 2 * b * shape.intermediate
    if run.checkpointing:  # inputs of the layers, and one layer again in full
        saved = tokens * shape.layers * s * shape.hidden
        backward = tokens * (gradients + of_a_layer) + run.casts / shape.layers
        forward = tokens * (inference_per_token(run, run.length) - s * shape.hidden)  # its stream is the kept input
    else:
        rotary = 2 * shape.head_dim * s * run.length
        saved = tokens * shape.layers * of_a_layer + rotary + run.casts
        backward, forward = tokens * max(gradients, 20 * shape.hidden), 0
    return [
        Part("activations: kept for backward", saved, (FORWARD, HEAD, BACKWARD)),
        Part("activations: last norm", last_norm, (HEAD, BACKWARD)),
        Part("activations: at work, forward", forward, (FORWARD,)),
        Part("activations: at work, backward", backward, (BACKWARD,)),
        Part("engine: casts of weights", run.casts, (TEACHER, FORWARD, HEAD) if run.checkpointing else (TEACHER,)),
    ]


def kernel(run: Run) -> list[Part]:
    """Buffers of `fused_linear_divergence` for a full-vocabulary forward KL, and the gradients that it forms."""
    shape, b, views, tokens = run.shape, run.entry, run.views, run.rows * run.completion
    room, most, tile = CHUNKS[run.device]
    size = max(1, min(most, room // ((views + 1) * shape.vocabulary * b)))
    size = math.ceil(tokens / math.ceil(tokens / size))  # tokens of a chunk, all chunks alike
    tile = min(size, max(1, tile // shape.vocabulary))
    on_gpu = run.device != "cpu"
    elementwise = 0 if on_gpu and size >= COMPILED_ROWS else (4 + 3 * views) * tile * shape.vocabulary * 4
    # Added to the head's gradient by each chunk; a GPU adds it within the product
    product = shape.head * b if b < 4 and not run.lora and not on_gpu else 0
    logits = (views + 1) * size * shape.vocabulary * b
    # The student's head is cast and, where it is another one, the teacher's; FSDP2 gathers them cast
    stored = run.frozen_entry if run.lora else run.trained_entry
    cast = (2 if run.copied_head else 1) * shape.head * b if stored != b and run.engine != "fsdp2" else 0
    hidden_states = (4 + 2 * b) * tokens * shape.hidden  # gradient, those given, and those picked
    return [
        Part("kernel: logits of a chunk", logits + max(elementwise, product), (HEAD,)),
        Part("kernel: head's gradient", 0 if run.lora else 4 * shape.head, (HEAD, BACKWARD)),
        Part("kernel: casts of the heads", cast, (HEAD,)),
        Part("kernel: hidden states", hidden_states, (HEAD, BACKWARD)),
    ]


def generation(run: Run) -> list[Part]:
    """Generation by transformers: all rollouts of a generation batch at once, and their keys and values."""
    rollouts = run.rows * run.accumulation
    cache = rollouts * run.shape.kv_bytes * run.length * run.entry / 2
    prefill = rollouts * run.prompt * inference_per_token(run, run.prompt)
    # By default TRL gathers the whole model under ZeRO-3; otherwise a layer at a time is there
    whole = run.shape.parameters if run.gather else min(run.shape.parameters, LIVE_PARAMETERS)
    gathered = {"zero3": whole, "fsdp2": 2 * run.shape.layer + run.shape.heads_held}.get(run.engine, 0)
    return [
        Part("KV cache", cache, (GENERATE,)),
        Part("activations: prompts at once", prefill, (GENERATE,)),
        Part("engine: gathered for generation", gathered * run.entry, (GENERATE,)),
    ]


def vllm(run: Run, training: list[Part]) -> list[Part]:
    """vLLM on the GPUs that train, with its share, with room for all rollouts of a step, or with what is free."""
    phases, weights = (GENERATE,) if run.sleep else PHASES, run.shape.parameters * 2 / run.tensor_parallel
    needed = weights + VLLM_OVERHEAD + run.rows * run.accumulation * run.shape.kv_bytes * run.length
    free = run.gpu_gb * 1e9 - max(at(training, phase) for phase in phases)
    taken = run.utilization * run.gpu_gb * 1e9 if run.utilization else min(needed, free)
    return [Part("vLLM weights", weights, phases), Part("KV cache", max(taken - weights, 0), phases)]
