# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The fused head has to give the model's own logits: families whose head is more than it are refused."""

import pytest
import torch
from peft import LoraConfig, TrainableTokensConfig
from torch import nn
from transformers import Llama4ForCausalLM, Llama4TextConfig

import tiny
from families import FAMILIES, OTHER_HEADS, SMALL, small_model


TYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("family", OTHER_HEADS)
def test_heads_that_are_more_than_a_matrix(make_trainer, tokenizer, family, dtype):
    """Also where a new model's logits are so small that a cap of 30 hardly changes them."""
    model = small_model(family, tokenizer, initializer_range=0.02).to(dtype)
    with pytest.raises(ValueError, match=f"{type(model).__name__}.*differ by up to .* of the largest.*another family"):
        make_trainer(model)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, "opt", "bloom", "gpt2", "mamba", "phi"])
def test_heads_that_the_fused_head_equals(make_trainer, tokenizer, family, dtype):
    """Factors and caps that configs name, a bias, and families that call a part of their backbone."""
    make_trainer(small_model(family, tokenizer).to(dtype))


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_float32_head_over_a_bfloat16_model(make_trainer, tokenizer, cast, mixed):
    model = tiny.model(tokenizer) if mixed else tiny.model(tokenizer).bfloat16()
    make_trainer(model, cast_lm_head_to_fp32=cast, bf16=mixed, use_cpu=True)


def test_a_separate_teacher_whose_head_is_more_than_a_matrix(make_trainer, tokenizer, tmp_path):
    for part in (small_model("recurrent_gemma", tokenizer), tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    options = {"teacher_model_kind": "checkpoint", "teacher_model_name_or_path": str(tmp_path / "teacher")}
    with pytest.raises(ValueError, match="The logits of RecurrentGemmaForCausalLM"):
        make_trainer(**options)


def test_a_backbone_that_is_the_model_itself(make_trainer, tokenizer):
    """TRL's own head can't read it either."""
    config = Llama4TextConfig(vocab_size=len(tokenizer), intermediate_size_mlp=64, num_local_experts=2, **SMALL)
    with pytest.raises(ValueError, match="Llama4ForCausalLM has no backbone under the name 'language_model'"):
        make_trainer(Llama4ForCausalLM(config))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_trainable_tokens_of_the_head(make_trainer, tokenizer, tied):
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"lm_head": [5, 6]})
    with pytest.raises(ValueError, match=r"TrainableTokensWrapper.*`trainable_token_indices`"):
        make_trainer(tiny.model(tokenizer, tie_word_embeddings=tied), peft_config=config)


def test_trainable_tokens_of_the_input_alone(make_trainer, tokenizer):
    model = tiny.model(tokenizer, tie_word_embeddings=False)
    seen = tokenizer.convert_tokens_to_ids(["<|im_start|>"])
    trainer = make_trainer(model, peft_config=TrainableTokensConfig(token_indices=seen))
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0


def test_a_head_of_four_bits(make_trainer, tokenizer):
    """As bitsandbytes leaves a weight: two entries a byte, in one column."""
    model = tiny.model(tokenizer, tie_word_embeddings=False)
    packed = torch.zeros(model.lm_head.weight.numel() // 2, 1, dtype=torch.uint8)
    model.lm_head.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(ValueError, match=r"torch.uint8.*`llm_int8_skip_modules=\['lm_head'\]`"):
        make_trainer(model)
