# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Small models of the families whose heads change their logits."""

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3,
}  # fmt: skip


FAMILIES = {
    "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 8, "attn_implementation": "eager"},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0},
    "qwen3_moe": {
        "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
    },
}  # fmt: skip
