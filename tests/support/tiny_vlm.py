# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Vision-language models of a few thousand parameters with their processors, one for each way to lay out pixels: Qwen2-VL
keeps patches of all images in one tensor beside a grid of each image; LLaVA and Gemma 3 have one entry for each image,
Gemma 3 with token types; Idefics 3 one for each row, padded to the most images of a row.
"""

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

import tiny


KINDS = ("qwen", "llava", "gemma3", "idefics3")
IMAGE_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IDEFICS_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
PLACEHOLDERS = {"gemma3": "<|vision_start|>", "idefics3": "<image>"}  # the others' is <|image_pad|> between two tokens

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for block in message.content %}{% if block.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ block.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SIDE = 8  # pixels of a patch's side


class _NoVideos(Qwen2VLProcessor):
    """Videos need torchvision, which is not among the requirements."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def tokenizer() -> PreTrainedTokenizerFast:
    """The byte-level tokenizer with the control tokens of images."""
    one = tiny.tokenizer()
    one.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *IMAGE_TOKENS, *IDEFICS_TOKENS]})
    one.chat_template, one.padding_side = CHAT_TEMPLATE, "left"
    return one


def processor(kind: str) -> ProcessorMixin:
    """The processor of one of [`KINDS`]."""
    chat_template = CHAT_TEMPLATE
    if kind in PLACEHOLDERS:
        chat_template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", PLACEHOLDERS[kind])
    if kind == "gemma3":
        images = Gemma3ImageProcessorPil(size={"height": 4 * SIDE, "width": 4 * SIDE})
        own = tokenizer()
        for name, token in zip(("boi", "eoi", "image"), IMAGE_TOKENS, strict=False):
            setattr(own, f"{name}_token", token)
            setattr(own, f"{name}_token_id", own.convert_tokens_to_ids(token))
        return Gemma3Processor(images, own, chat_template=chat_template, image_seq_length=4)
    if kind == "idefics3":
        side = {"longest_edge": 4 * SIDE}
        try:
            images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
        except ImportError:
            pytest.skip("older versions of transformers have this image processor with torchvision alone")
        return Idefics3Processor(images, tokenizer(), image_seq_len=4, chat_template=chat_template)
    if kind == "qwen":
        size = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
        images = Qwen2VLImageProcessorPil(patch_size=SIDE, merge_size=2, temporal_patch_size=1, size=size)
        return _NoVideos(images, tokenizer(), chat_template=CHAT_TEMPLATE)
    size = {"height": 2 * SIDE, "width": 2 * SIDE}
    images = CLIPImageProcessorPil(size=size, crop_size=size)
    return LlavaProcessor(
        images,
        tokenizer(),
        patch_size=SIDE,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token="<|image_pad|>",
    )


def model(kind: str, seed: int = 0) -> PreTrainedModel:
    """Random weights, large enough that pixels matter: the same for the same seed."""
    torch.manual_seed(seed)
    own = tokenizer()
    ids = dict(zip(IMAGE_TOKENS, own.convert_tokens_to_ids(list(IMAGE_TOKENS)), strict=True))
    text = {
        "vocab_size": len(own),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": own.eos_token_id,
        "pad_token_id": own.pad_token_id,
        "initializer_range": 0.3,
    }
    if kind == "qwen":
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
        vision |= {"patch_size": SIDE, "spatial_merge_size": 2, "temporal_patch_size": 1, "initializer_range": 0.3}
        config = Qwen2VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config=vision,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
        return Qwen2VLForConditionalGeneration(config)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    if kind == "gemma3":
        config = Gemma3Config(
            text_config={**text, "head_dim": 8, "sliding_window": 16},
            vision_config={**vision, "image_size": 4 * SIDE, "patch_size": SIDE},
            mm_tokens_per_image=4,
            boi_token_index=ids["<|vision_start|>"],
            eoi_token_index=ids["<|vision_end|>"],
            image_token_index=ids["<|image_pad|>"],
            initializer_range=0.3,
        )
        made = Gemma3ForConditionalGeneration(config)
        torch.nn.init.normal_(made.model.multi_modal_projector.mm_input_projection_weight)  # else 0
        return made
    if kind == "idefics3":
        config = Idefics3Config(
            text_config={**text, "model_type": "llama"},
            vision_config={**vision, "image_size": 4 * SIDE, "patch_size": SIDE, "initializer_range": 0.3},
            scale_factor=2,
            image_token_id=own.convert_tokens_to_ids("<image>"),
            pad_token_id=own.pad_token_id,
            initializer_range=0.3,
        )
        return Idefics3ForConditionalGeneration(config)
    vision |= {"image_size": 2 * SIDE, "patch_size": SIDE, "initializer_range": 0.3}
    config = LlavaConfig(
        text_config=Qwen2Config(**text),
        vision_config=CLIPVisionConfig(**vision),
        image_token_index=ids["<|image_pad|>"],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def image(color: int, width: int = 32, height: int = 32) -> Image.Image:
    """A picture with a gradient, so that crops differ: the same for the same color."""
    pixels = [((x * 7 + color * 31) % 256, (y * 7) % 256, color % 256) for y in range(height) for x in range(width)]
    made = Image.new("RGB", (width, height))
    made.putdata(pixels)
    return made
