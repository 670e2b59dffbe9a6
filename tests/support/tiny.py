# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""A byte-level tokenizer with a chat template, and Qwen2 models of a few thousand parameters."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the three control tokens of ChatML."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [], trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )


def model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **config: Any) -> Qwen2ForCausalLM:
    """Random weights, large enough that contexts matter: the same for the same seed."""
    torch.manual_seed(seed)
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,
        **config,
    }
    return Qwen2ForCausalLM(Qwen2Config(**options))


def save_adapter(folder: Path, seed: int, scale: float = 1.0, **options: Any) -> str:
    """Save a LoRA adapter of random weights on the tiny model, zero at scale 0; gives its folder."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], **options})
    adapted, draw = get_peft_model(model(tokenizer()), config), torch.Generator().manual_seed(seed)
    for name, one in adapted.named_parameters():
        if "lora_" in name:
            one.data = scale * torch.randn(one.shape, generator=draw)
    adapted.save_pretrained(folder)
    return str(folder)
