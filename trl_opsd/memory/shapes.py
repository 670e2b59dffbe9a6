# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Model shapes: sizes of dense decoders, from their transformers configs, and some models by name."""

from typing import Any


FAMILIES = ("qwen3", "qwen2", "llama")
KEYS = (  # of a transformers config
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings",
)  # fmt: skip
_MODELS = {
    "qwen2.5-1.5b": ("qwen2", 28, 1536, 8960, 12, 2, 128, 151_936, True),
    "qwen2.5-7b": ("qwen2", 28, 3584, 18_944, 28, 4, 128, 152_064, False),
    "qwen3-0.6b": ("qwen3", 28, 1024, 3072, 16, 8, 128, 151_936, True),
    "qwen3-1.7b": ("qwen3", 28, 2048, 6144, 16, 8, 128, 151_936, True),
    "qwen3-4b": ("qwen3", 36, 2560, 9728, 32, 8, 128, 151_936, True),
    "qwen3-8b": ("qwen3", 36, 4096, 12_288, 32, 8, 128, 151_936, False),
    "qwen3-14b": ("qwen3", 40, 5120, 17_408, 40, 8, 128, 151_936, False),
    "qwen3-32b": ("qwen3", 64, 5120, 25_600, 64, 8, 128, 151_936, False),
}
MODELS: dict[str, dict[str, Any]] = {name: dict(zip(KEYS, sizes, strict=True)) for name, sizes in _MODELS.items()}
# Trained further, with the sizes of the model that they come from
_VARIANTS = ("-instruct-2507", "-thinking-2507", "-instruct", "-base")


def known_config(model: str) -> dict[str, Any] | None:
    """
    Config of a model that needs no file: `qwen3-8b`, or the Hub id `Qwen/Qwen3-8B`.

    Args:
        model (`str`): Name or Hub id.
    """
    name = model.lower().removeprefix("qwen/")
    for variant in _VARIANTS:
        name = name.removesuffix(variant)
    return MODELS.get(name)


class Shape:
    """
    Sizes of a dense decoder.

    Args:
        config (`dict[str, Any]`): Its transformers config.

    Raises:
        ValueError: If the formulas do not cover the model, or the config lacks a size.
    """

    def __init__(self, config: dict[str, Any]):
        family = config.get("model_type")
        if family not in FAMILIES or config.get("mlp_bias"):
            raise ValueError(f"the formulas cover {', '.join(FAMILIES)} without biases in the MLP, not a {family!r}")
        missing = [key for key in (*KEYS[1:5], "vocab_size") if not config.get(key)]
        if missing:
            raise ValueError(f"its config.json has no {', '.join(missing)}")
        h, i = config["hidden_size"], config["intermediate_size"]
        self.layers, self.hidden, self.intermediate = config["num_hidden_layers"], h, i
        self.vocabulary, self.heads = config["vocab_size"], config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.head_dim = config.get("head_dim") or h // self.heads
        q, k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.query, self.key, self.head = q, k, self.vocabulary * h
        self.matrices = h * (2 * q + 2 * k + 3 * i)  # of a layer: q, k, v, o, gate, up, down
        self.qk_norm = family == "qwen3"  # norms of queries and keys; Qwen2 has biases there
        extra = {"qwen3": 2 * self.head_dim, "qwen2": q + 2 * k, "llama": 0}[family]
        self.layer = self.matrices + 2 * h + extra
        self.heads_held = self.head * (1 if config.get("tie_word_embeddings") else 2)  # head and embedding
        self.parameters = self.layers * self.layer + h + self.heads_held
        self.adapter = self.layers * (7 * h + 2 * q + 2 * k + 3 * i)  # of LoRA on all matrices, for each rank
        self.kv_bytes = 4 * self.layers * k  # of a token's keys and values in bfloat16
