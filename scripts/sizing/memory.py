# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Bytes on one GPU, part by part, and in which phases of a step each part is there.

docs/scaling.md writes the formulas out and says how far they are from what small models take. Legend: L layers, H
hidden size, I intermediate size, V vocabulary, G ranks, N completion tokens of a micro-batch, K views, T tokens of a
row, b bytes of a number in the matrix products, s of one in the residual stream.
"""

import math
from dataclasses import dataclass

from sizing.setup import Setup


PHASES = ("generate", "teacher", "forward", "head", "backward", "step")
GENERATE, TEACHER, FORWARD, HEAD, BACKWARD, STEP = PHASES

# Of trl_opsd.kernels.chunks: bytes of a chunk's logits, most tokens of it, entries of a tile
CHUNKS = {"cpu": (320 * 2**20, 256, 2**18), "cuda": (2**30, 4096, 2**23)}
VIEWS_OF_A_FORWARD = 4  # of trl_opsd.batches.teacher_batch
# DeepSpeed's defaults, in numbers of parameters
REDUCE_BUCKET, LIVE_PARAMETERS, SUB_GROUP = 500_000_000, 1_000_000_000, 1_000_000_000
VLLM_OVERHEAD = 3e9  # assumed: CUDA graphs and activations of vLLM


@dataclass(frozen=True)
class Part:
    """
    Something that takes memory.

    Args:
        name (`str`): What it is.
        bytes (`float`): On one GPU.
        phases (`tuple[str, ...]`): When it is there.
    """

    name: str
    bytes: float
    phases: tuple[str, ...] = PHASES


def parts(setup: Setup) -> list[Part]:
    """All parts, those of 0 bytes too."""
    made = [*states(setup), *teacher(setup), *engine(setup), *activations(setup), *kernel(setup), *vllm(setup)]
    return [part for part in made if part.bytes >= 0]


def at(setup: Setup, phase: str) -> float:
    """Bytes in one phase."""
    return sum(part.bytes for part in parts(setup) if phase in part.phases)


def peak(setup: Setup) -> tuple[float, str]:
    """Most bytes of any phase, and which one that is."""
    return max((at(setup, phase), phase) for phase in PHASES)


def fits(setup: Setup) -> bool:
    """Whether all phases fit, and vLLM has room for its weights and at least one rollout."""
    return peak(setup)[0] <= setup.gpu_bytes and (setup.vllm == "none" or concurrency(setup) >= 1)


def states(setup: Setup) -> list[Part]:
    """Weights, gradients and optimizer."""
    trained = setup.trained
    weights = (trained * setup.trained_entry + setup.frozen * setup.frozen_entry) / setup.weight_ranks
    return [
        Part("weights", weights),
        # Freed after a step, but for ZeRO's; counted throughout
        Part("gradients", trained * setup.trained_entry / setup.gradient_ranks),
        Part("optimizer", trained * setup.optimizer_entry / setup.optimizer_ranks),
    ]


def teacher(setup: Setup) -> list[Part]:
    """Copies of the trained weights, and what lending them takes."""
    copy = setup.trained * setup.teacher_entry / setup.weight_ranks if setup.copied_teacher else 0
    rows = setup.rows * min(setup.views, VIEWS_OF_A_FORWARD)
    tokens = rows * (setup.teacher_prompt + setup.completion)
    answer = setup.views * setup.rows * setup.completion * setup.shape.hidden * setup.entry
    return [
        Part("teacher", copy),
        Part("lending the teacher's weights", lending(setup), (TEACHER,)),
        Part("teacher's activations", tokens * inference_per_token(setup, tokens // rows), (TEACHER,)),
        Part("teacher's hidden states", answer, (TEACHER, FORWARD, HEAD)),
        Part("teacher's head", teacher_head(setup), (HEAD,)),
    ]


def lending(setup: Setup) -> float:
    """What `shards.swapped_in` holds: FSDP2 keeps the student's part aside; others cast a teacher of another type."""
    if not setup.copied_teacher:
        return 0
    whole = setup.trained * setup.trained_entry / setup.weight_ranks
    if setup.engine == "fsdp2":
        return whole
    return whole if setup.teacher_entry != setup.trained_entry else 0


def teacher_head(setup: Setup) -> float:
    """What `shards.gather` makes of the teacher's head."""
    if not setup.copied_head:
        return 0
    made = setup.shards_weights or setup.teacher_entry != setup.trained_entry
    return setup.shape.head * (setup.entry if setup.engine == "fsdp2" else setup.trained_entry) if made else 0


def engine(setup: Setup) -> list[Part]:
    """Buckets, gathered weights and casts."""
    shape, trained = setup.shape, setup.trained
    heads = shape.head * (1 if shape.tied else 2) * setup.entry
    forwards = (TEACHER, FORWARD, HEAD, BACKWARD)
    if setup.engine == "ddp":  # buckets beside the gradients: accelerate leaves `gradient_as_bucket_view` off
        own = [Part("gradient buckets", trained * setup.trained_entry)]
    elif setup.engine in ("zero1", "zero2"):
        own = [Part("gradient buckets", min(trained, REDUCE_BUCKET) * setup.entry, (BACKWARD,))]
    elif setup.engine == "zero3":
        own = [
            Part("gathered weights", min(shape.parameters, LIVE_PARAMETERS) * setup.entry, forwards),
            Part("gradient buckets", min(trained, REDUCE_BUCKET) * setup.entry, (BACKWARD,)),
        ]
    elif setup.engine == "fsdp2":  # the layer at work and the next; embedding and head are one unit
        layers = 2 * shape.layer * setup.entry
        unsharded = (layers + heads) if not setup.lora else 2 * shape.adapter(setup.lora) / shape.layers * 4
        own = [
            Part("gathered weights", layers + heads, forwards),
            Part("gradient buckets", unsharded, (BACKWARD,)),
        ]
    else:
        own = []
    if setup.deepspeed:
        share = trained / setup.optimizer_ranks
        own.append(Part("float32 gradients", 4 * min(share, SUB_GROUP if setup.engine == "zero3" else share), (STEP,)))
    if setup.vllm != "none":
        own.append(Part("weight sync", sync(setup), (GENERATE,)))
    return own


def sync(setup: Setup) -> float:
    """
    What handing the weights to vLLM gathers. TRL goes parameter by parameter, but under ZeRO-3 it gathers a model with
    an adapter whole, as merging needs it.
    """
    if not setup.shards_weights:
        return 0
    if setup.lora and setup.engine == "zero3":
        return setup.shape.parameters * setup.frozen_entry
    return setup.shape.head * (setup.frozen_entry if setup.lora else setup.trained_entry)


def casts(setup: Setup) -> float:
    """Casts of the body's matrices that autocast keeps for the length of a forward."""
    return setup.shape.matrices * 2 if setup.autocast else 0


def saved_per_token(setup: Setup) -> float:
    """What one layer keeps of a token for its backward, with `sdpa` and a padding mask, which repeats keys."""
    shape, b = setup.shape, setup.entry
    hidden = 26 if setup.autocast else 16 if b == 2 else 24
    qk_norm = (4 + b) * (shape.query + shape.key) + 4 * (shape.heads + shape.kv_heads) if shape.qk_norm else 0
    attention = 4 * b * shape.query + 4 * shape.heads + b * setup.length
    return hidden * shape.hidden + 8 + qk_norm + attention + 4 * b * shape.intermediate


def inference_per_token(setup: Setup, length: int) -> float:
    """Most that a forward which keeps nothing holds of a token of a row of `length`: in the MLP or in the attention."""
    shape, b = setup.shape, setup.entry
    mlp = 3 * b * shape.intermediate + 2 * (setup.stream + b) * shape.hidden
    attention = b * (4 * shape.query + 2 * shape.key + length) + (2 * setup.stream + b) * shape.hidden
    return max(mlp, attention) + length  # the mask


def saved(setup: Setup) -> float:
    """What the layers keep for the backward of a micro-batch: their inputs, or all that they need."""
    shape, tokens = setup.shape, setup.rows * setup.length
    if setup.checkpointing:
        return tokens * shape.layers * setup.stream * shape.hidden
    rotary = 2 * shape.head_dim * setup.stream * setup.length
    return tokens * shape.layers * saved_per_token(setup) + rotary + casts(setup)


def saved_last(setup: Setup) -> float:
    """What the last norm keeps, and the ids."""
    return setup.rows * setup.length * ((8 if setup.stream == 4 else 6) * setup.shape.hidden + 12)


def activations(setup: Setup) -> list[Part]:
    """Of the student, and autocast's casts in both forwards."""
    shape, tokens = setup.shape, setup.rows * setup.length
    gradients = 2 * setup.entry * shape.intermediate
    if setup.checkpointing:  # one layer again in full
        backward = tokens * (gradients + saved_per_token(setup)) + casts(setup) / shape.layers
        # Whose residual stream is the input that it keeps
        forward = tokens * (inference_per_token(setup, setup.length) - setup.stream * shape.hidden)
    else:
        backward, forward = tokens * max(gradients, 20 * shape.hidden), 0
    return [
        Part("activations kept for backward", saved(setup), (FORWARD, HEAD, BACKWARD)),
        Part("last norm", saved_last(setup), (HEAD, BACKWARD)),
        Part("activations at work, forward", forward, (FORWARD,)),
        Part("activations at work, backward", backward, (BACKWARD,)),
        Part("casts of weights", casts(setup), (TEACHER, FORWARD, HEAD) if setup.checkpointing else (TEACHER,)),
    ]


def chunk(setup: Setup) -> int:
    """Tokens of a chunk of the kernel, as `trl_opsd.kernels.chunks.chunks` cuts them."""
    room, most, _ = CHUNKS[setup.device]
    tokens = setup.rows * setup.completion
    size = max(1, min(most, int(room) // ((setup.views + 1) * setup.shape.vocabulary * setup.entry)))
    return math.ceil(tokens / math.ceil(tokens / size))


def kernel(setup: Setup) -> list[Part]:
    """Buffers of `fused_linear_divergence` for a full-vocabulary forward KL, and the gradients that it forms."""
    shape, b, views = setup.shape, setup.entry, setup.views
    tokens, size = setup.rows * setup.completion, chunk(setup)
    tile = min(size, max(1, CHUNKS[setup.device][2] // shape.vocabulary))
    elementwise = (5 + 3 * views) * tile * shape.vocabulary * 4
    product = shape.head * b if b < 4 and not setup.lora else 0  # what a chunk adds to the head's gradient
    logits = (views + 1) * size * shape.vocabulary * b
    # `Head.prepared` casts the student's head and, where it is another one, the teacher's; FSDP2 gathers them cast
    stored = setup.frozen_entry if setup.lora else setup.trained_entry
    heads = 2 if setup.copied_head else 1
    cast = heads * shape.head * b if stored != b and setup.engine != "fsdp2" else 0
    hidden_states = (4 + 2 * b) * tokens * shape.hidden  # gradient, hidden states of the completion, and those picked
    return [
        Part("kernel: logits of a chunk", logits + max(elementwise, product), (HEAD,)),
        Part("kernel: head's gradient", 0 if setup.lora else 4 * shape.head, (HEAD, BACKWARD)),
        Part("kernel: casts of the heads", cast, (HEAD,)),
        Part("kernel: hidden states", hidden_states, (HEAD, BACKWARD)),
    ]


def rollout_bytes(setup: Setup) -> float:
    """Keys and values of one rollout on each GPU of its engine."""
    return setup.shape.kv_bytes(setup.length) / setup.tensor_parallel


def engine_rollouts(setup: Setup) -> float:
    """Rollouts of a step for each engine of vLLM."""
    engines = (setup.server_gpus or setup.ranks) / setup.tensor_parallel
    return setup.rollouts / engines


def vllm_bytes(setup: Setup) -> float:
    """What vLLM takes of a GPU: the given share, or what all rollouts of a step need at once."""
    if setup.utilization is not None:
        return setup.utilization * setup.gpu_bytes
    weights = setup.shape.parameters * 2 / setup.tensor_parallel
    needed = weights + VLLM_OVERHEAD + engine_rollouts(setup) * rollout_bytes(setup)
    if setup.vllm == "server":
        return max(min(needed, 0.9 * setup.gpu_bytes), 0)
    room = setup.gpu_bytes - resident(setup)
    return min(needed, max(room, 0))


def resident(setup: Setup) -> float:
    """What is there beside vLLM while it generates; without sleep, beside it in the worst phase."""
    others = [*states(setup), *teacher(setup), *engine(setup), *activations(setup), *kernel(setup)]
    phases = (GENERATE,) if setup.sleep else PHASES
    return max(sum(part.bytes for part in others if phase in part.phases) for phase in phases)


def concurrency(setup: Setup) -> int:
    """Rollouts that an engine of vLLM generates at a time; 0 where its own weights do not fit."""
    if setup.vllm == "none":
        return 0
    room = vllm_bytes(setup) - setup.shape.parameters * 2 / setup.tensor_parallel - VLLM_OVERHEAD
    most = math.ceil(engine_rollouts(setup))
    return max(0, min(most, round(room // rollout_bytes(setup) if room > 0 else 0)))


def vllm(setup: Setup) -> list[Part]:
    """vLLM on the GPUs that train."""
    if setup.vllm != "colocate":
        return []
    phases = (GENERATE,) if setup.sleep else PHASES
    weights = setup.shape.parameters * 2 / setup.tensor_parallel
    taken = max(vllm_bytes(setup), weights)
    return [
        Part("vLLM: weights", weights, phases),
        Part("vLLM: KV cache", taken - weights, phases),
    ]
