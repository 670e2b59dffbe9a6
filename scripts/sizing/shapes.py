# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The shape of a model, and the numbers of parameters that follow from it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """
    A dense decoder of the Llama kind.

    Args:
        name (`str`): How tables call it.
        layers (`int`): L.
        hidden (`int`): H.
        intermediate (`int`): I, width of the gated MLP.
        heads, kv_heads, head_dim (`int`): Attention; queries are `heads * head_dim` wide.
        vocabulary (`int`): V.
        tied (`bool`): Whether head and embedding are one matrix.
        qk_norm (`bool`): Whether queries and keys are normalised (Qwen3).
        qkv_bias (`bool`): Whether their projections have biases (Qwen2).
    """

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

    @property
    def query(self) -> int:
        """Width of a token's queries, all heads together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of its keys, and of its values."""
        return self.kv_heads * self.head_dim

    @property
    def head(self) -> int:
        """Parameters of the head, V H."""
        return self.vocabulary * self.hidden

    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the matrices of one layer: q, k, v, o, gate, up, down."""
        h, i, q, k = self.hidden, self.intermediate, self.query, self.key
        return [(h, q), (h, k), (h, k), (q, h), (h, i), (h, i), (i, h)]

    @property
    def layer_matrices(self) -> int:
        """Parameters of the matrices of one layer."""
        return sum(inputs * outputs for inputs, outputs in self.linears())

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return self.layer_matrices + norms + (self.query + 2 * self.key if self.qkv_bias else 0)

    @property
    def matrices(self) -> int:
        """P of the formulas for time: what a token is multiplied with in the body."""
        return self.layers * self.layer_matrices

    @property
    def parameters(self) -> int:
        """All parameters; a tied head counts once."""
        return self.layers * self.layer + self.hidden + self.head * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on all matrices of the body."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.linears())

    def kv_bytes(self, tokens: int, entry: int = 2) -> int:
        """Bytes of keys and values of `tokens` tokens, `entry` bytes a number."""
        return 2 * self.layers * self.key * entry * tokens


# From the models' public configs
SHAPES = {
    "qwen3-1.7b": Shape("Qwen3-1.7B", 28, 2048, 6144, 16, 8, 128, 151_936, tied=True, qk_norm=True),
    "qwen3-8b": Shape("Qwen3-8B", 36, 4096, 12_288, 32, 8, 128, 151_936, qk_norm=True),
    "qwen3-32b": Shape("Qwen3-32B", 64, 5120, 25_600, 64, 8, 128, 151_936, qk_norm=True),
}

_FAMILIES = ("qwen3", "qwen2", "llama")  # of which the formulas are checked


def from_config(config: dict[str, Any], name: str) -> Shape:
    """
    The shape that a transformers config describes.

    Args:
        config (`dict`): Contents of a `config.json`.
        name (`str`): How tables call it.

    Raises:
        ValueError: If it is of a family that the formulas were not made for.
    """
    family = config.get("model_type")
    if family not in _FAMILIES or (family == "llama" and (config.get("attention_bias") or config.get("mlp_bias"))):
        raise ValueError(
            f"`--model`: the formulas cover {', '.join(_FAMILIES)} (without biases in Llama), and {name} is a "
            f"{family!r}. Name a model of one of them that is of like size."
        )
    heads = config["num_attention_heads"]
    return Shape(
        name,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        qk_norm=family == "qwen3",
        qkv_bias=family == "qwen2",
    )


def find(model: str) -> Shape:
    """
    A built-in shape, or that of a folder with a `config.json`.

    Raises:
        ValueError: If it is neither.
    """
    if model.lower() in SHAPES:
        return SHAPES[model.lower()]
    file = Path(model) / "config.json"
    if not file.is_file():
        raise ValueError(f"`--model`: {model} is neither one of {', '.join(SHAPES)} nor a folder with a config.json.")
    return from_config(json.loads(file.read_text()), Path(model).resolve().name)
