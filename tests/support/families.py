# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Small models of the families whose heads change their logits."""

from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    BertConfig,
    BertLMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


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

# Heads that are more than a matrix, a factor and the cap that `final_logit_softcapping` names
OTHER_HEADS = {
    "recurrent_gemma": {
        "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 64, "logits_soft_cap": 30.0,
        "w_init_variance_scale": 0.01,
    },
    "xlstm": {
        "num_heads": 2, "output_logit_soft_cap": 30.0, "chunk_size": 16, "qk_dim_factor": 1.0, "v_dim_factor": 1.0,
    },
    "modernbert-decoder": {"bos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0},
    "bert": {"is_decoder": True},
}  # fmt: skip

_WITHOUT_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
# Positions that are counted from the first column of a batch
ABSOLUTE = {
    "gpt2": {**_WITHOUT_DROPOUT, "num_key_value_heads": 4},  # which PEFT reads
    "gpt_bigcode": _WITHOUT_DROPOUT,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "resid_dropout": 0.0, "embed_dropout": 0.0},
    "xglm": {"d_model": 32, "ffn_dim": 64, "init_std": 0.3, "dropout": 0.0, "attention_dropout": 0.0},
}


def small_model(family: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A causal language model of a family, with random weights that are the same for the same seed."""
    torch.manual_seed(seed)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    known = (FAMILIES | OTHER_HEADS | ABSOLUTE).get(family, {})
    options = {"vocab_size": len(tokenizer), **ids, **SMALL, **known, **config}
    if family == "bert":  # whose causal model no Auto class names
        return BertLMHeadModel(BertConfig(**options))
    settings = AutoConfig.for_model(family, **options)
    # Not `from_config`: after a run under ZeRO-3 in this process it would shard the weights as it makes them
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)](settings)
