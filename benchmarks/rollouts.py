# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Models and scripted rollouts of the step and scaling benchmarks.

Every trainer gets the same rows, the same completion ids and the same micro-batch size, so that nothing but its own
work differs.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from benchmarks.environment import ROOT
from trl_opsd.examples import smollm2


WORDS = (
    "river stone light garden winter bread music window letter market forest number bridge silver candle ocean paper "
    "story morning village engine mountain question answer colour summer kitchen island teacher student"
).split()


SYSTEM = {"role": "system", "content": "Answer."}  # without one, SmolLM2's template puts a longer one


@dataclass(frozen=True)
class Scenario:
    """
    Rollouts of one generation batch; lengths are in words, which are about a token each.

    Args:
        rows (`int`): Rollouts.
        batch (`int`): Rows of a micro-batch.
        completion (`tuple[int, int]`): Shortest and longest completion, in tokens.
        prompt, context (`tuple[int, int]`): Shortest and longest prompt and privileged context.
        group (`int`): Rows that share prompt and context.
        checkpointing (`bool`): Whether activations are computed again in the backward pass.
    """

    rows: int
    batch: int
    completion: tuple[int, int]
    prompt: tuple[int, int] = (8, 16)
    context: tuple[int, int] = (24, 48)
    group: int = 1
    checkpointing: bool = False

    def data(self) -> list[dict[str, Any]]:
        draw = random.Random(0)

        def text(bounds: tuple[int, int]) -> str:
            return " ".join(draw.choices(WORDS, k=draw.randint(*bounds)))

        made = []
        for _ in range(self.rows // self.group):
            prompt = [SYSTEM, {"role": "user", "content": text(self.prompt)}]
            made += [{"prompt": prompt, "privileged_context": text(self.context)}] * self.group
        return made

    def completions(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Random ids of evenly spread lengths in a random order, each with an end."""
        draw = random.Random(1)
        shortest, longest = self.completion
        steps = max(self.rows - 1, 1)
        lengths = [shortest + (longest - shortest) * row // steps for row in range(self.rows)]
        draw.shuffle(lengths)
        ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
        return [[*draw.choices(ordinary, k=length - 1), tokenizer.eos_token_id] for length in lengths]


@dataclass
class Model:
    """A model with its tokenizer; `name` is for the tables."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weights_mb: float = field(init=False)

    def __post_init__(self) -> None:
        self.weights_mb = sum(p.nbytes for p in self.model.parameters()) / 1e6

    def operations(self, tokens: dict[str, int], views: int) -> float:
        """Floating-point operations of a window's matrix products, by counts, but for attention: student forward and
        backward, teacher forward, and the head's logits of both and its two gradients."""
        head = self.model.get_output_embeddings().weight.numel()
        body = sum(p.numel() for p in self.model.parameters()) - head  # a tied head counts once
        return 2 * (body * (3 * tokens["student"] + tokens["teacher"]) + head * (3 + views) * tokens["completion"])


def smollm2_135m(dtype: torch.dtype) -> Model:
    return from_folder(str(smollm2.prepare(ROOT / smollm2.MODEL_DIR)), dtype, "SmolLM2-135M")


def from_folder(folder: str, dtype: torch.dtype, name: str) -> Model:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for param in model.parameters():
        # Weights that are mapped from a file would count as new memory of each process that first reads them
        param.data = param.data.clone()
    return Model(name, model, AutoTokenizer.from_pretrained(folder))


def qwen3_like(dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, layers: int = 3) -> Model:
    """Qwen3-0.6B's head and layers, but few of them and random: there is no hub. Its tokenizer is another's, whose ids
    all lie within the larger vocabulary."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Model(f"Qwen3-0.6B's head, {layers} layers", Qwen3ForCausalLM(config).to(dtype), tokenizer)
