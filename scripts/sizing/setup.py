# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What a run is set to, and in which types an engine then keeps what it trains. Sizes are bytes; 1 GB is 1e9 bytes."""

from dataclasses import dataclass

from sizing.shapes import Shape


ENGINES = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp2")
TEACHERS = ("live", "base", "ema", "snapshot")
VLLM = ("colocate", "server", "none")
DTYPES = ("float32", "bfloat16")
CHOICES = {"engine": ENGINES, "teacher": TEACHERS, "vllm": VLLM, "dtype": DTYPES}


@dataclass(frozen=True)
class Setup:
    """
    A run.

    Args:
        shape ([`Shape`]): The model.
        engine (`str`): One of `ENGINES`; `none` is one process.
        nodes, gpus_per_node (`int`): GPUs there are.
        gpu_bytes (`float`): Memory of one.
        dtype (`str`): Type that the model is loaded in, TRL's `dtype`: `float32` (its default) or `bfloat16`.
        bf16 (`bool`): `bf16=True` of the training arguments.
        lora (`int`): Rank of an adapter on all matrices of the body, 0 for all weights.
        teacher (`str`): `teacher_model_kind`, one of `TEACHERS`. An adapter is a new one.
        views (`int`): Views of each rollout.
        rows (`int`): `per_device_train_batch_size`.
        accumulation (`int`): `gradient_accumulation_steps`.
        prompt, completion, teacher_prompt (`int`): Tokens of each row; the teacher's prompt has the context in it.
        checkpointing (`bool`): `gradient_checkpointing`.
        vllm (`str`): One of `VLLM`; `none` leaves generation out, `server` takes `server_gpus` away from training.
        tensor_parallel (`int`): GPUs that share one engine of vLLM.
        server_gpus (`int`): GPUs of a server.
        utilization (`float` or `None`): `vllm_gpu_memory_utilization`; `None` takes what all rollouts of a step need.
        sleep (`bool`): `vllm_enable_sleep_mode`.
        device (`str`): Whose chunk sizes the kernel takes, `cuda` or `cpu`.
    """

    shape: Shape
    engine: str = "zero3"
    nodes: int = 1
    gpus_per_node: int = 8
    gpu_bytes: float = 80e9
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
    vllm: str = "colocate"
    tensor_parallel: int = 1
    server_gpus: int = 0
    utilization: float | None = None
    sleep: bool = False
    device: str = "cuda"

    def __post_init__(self) -> None:
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"`--{name}` must be one of {', '.join(values)}, got {getattr(self, name)!r}.")
        if self.engine == "none" and self.nodes * self.gpus_per_node - self.server_gpus != 1:
            raise ValueError("`--engine none` is one process on one GPU: set `--gpus 1`, or choose another engine.")
        if (self.vllm == "server") != (self.server_gpus > 0):
            raise ValueError("`--vllm server` and `--server-gpus N` go together: set both, or neither.")
        if self.ranks < 1:
            raise ValueError(f"`--server-gpus {self.server_gpus}` leaves no GPU to train on: lower it.")
        engines = self.server_gpus if self.vllm == "server" else self.nodes * self.gpus_per_node
        if engines % self.tensor_parallel or self.tensor_parallel > self.gpus_per_node:
            raise ValueError(
                f"`--tensor-parallel {self.tensor_parallel}` must divide the {engines} GPUs that generate, within a "
                f"node of {self.gpus_per_node}."
            )
        if self.utilization is not None and not 0 < self.utilization < 1:
            raise ValueError(f"`--utilization` must lie between 0 and 1, got {self.utilization}.")

    @property
    def ranks(self) -> int:
        """G, the processes that train."""
        return self.nodes * self.gpus_per_node - self.server_gpus

    @property
    def deepspeed(self) -> bool:
        return self.engine.startswith("zero")

    @property
    def shards_weights(self) -> bool:
        return self.engine in ("zero3", "fsdp2")

    @property
    def weight_ranks(self) -> int:
        """Ranks over which weights are spread."""
        return self.ranks if self.shards_weights else 1

    @property
    def gradient_ranks(self) -> int:
        return self.ranks if self.shards_weights or self.engine == "zero2" else 1

    @property
    def optimizer_ranks(self) -> int:
        return self.ranks if self.shards_weights or self.deepspeed else 1

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return self.shape.adapter(self.lora) if self.lora else self.shape.parameters

    @property
    def frozen(self) -> int:
        return self.shape.parameters if self.lora else 0

    @property
    def trained_entry(self) -> int:
        """Bytes of a trained weight where it is stored."""
        if self.deepspeed:  # casts the model, and keeps float32 copies in the optimizer
            return 2 if self.bf16 else 4
        if self.engine == "fsdp2" and self.bf16:
            return 4  # accelerate raises what is trained to float32
        return 4 if self.lora else self._loaded  # PEFT raises adapters to float32

    @property
    def frozen_entry(self) -> int:
        return (2 if self.bf16 else 4) if self.deepspeed else self._loaded

    @property
    def optimizer_entry(self) -> int:
        """Bytes of AdamW for a trained weight: two averages in its type, or in float32 beside a float32 copy."""
        return 12 if self.deepspeed else 2 * self.trained_entry

    @property
    def entry(self) -> int:
        """b, bytes of a number in the matrix products."""
        return 2 if self.bf16 or self._loaded == 2 else 4

    @property
    def autocast(self) -> bool:
        """Whether float32 weights are cast for each product; elsewhere the engine gives weights in the right type."""
        return self.entry == 2 and self.engine in ("none", "ddp") and self._loaded == 4

    @property
    def stream(self) -> int:
        """Bytes of a number of the residual stream: under autocast it stays in the type of the embedding."""
        return 4 if self.autocast else self.entry

    @property
    def copied_teacher(self) -> bool:
        """Whether the teacher is a copy; with a new adapter `base` is the model without it."""
        return self.teacher in ("ema", "snapshot") or (self.teacher == "base" and not self.lora)

    @property
    def teacher_entry(self) -> int:
        return 4 if self.teacher == "ema" else self.trained_entry

    @property
    def copied_head(self) -> bool:
        """Whether the teacher's head is another tensor than the student's; an adapter leaves the head alone."""
        return self.copied_teacher and not self.lora

    @property
    def length(self) -> int:
        """T, tokens of a row that the student reads."""
        return self.prompt + self.completion

    @property
    def rollouts(self) -> int:
        """Rollouts of an optimizer step, all ranks together."""
        return self.ranks * self.rows * self.accumulation

    @property
    def _loaded(self) -> int:
        return {"float32": 4, "bfloat16": 2}[self.dtype]
