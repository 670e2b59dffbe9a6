# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
Vision-language models of a few thousand parameters with their processors, one for each way to lay out pixels: Qwen2-VL
keeps patches of all images in one tensor beside a grid of each image, LLaVA one row for each image.
"""

from typing import Any

import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
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


IMAGE_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

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
    one.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *IMAGE_TOKENS]})
    one.chat_template, one.padding_side = CHAT_TEMPLATE, "left"
    return one


def processor(kind: str) -> ProcessorMixin:
    """The processor of a kind of model, `"qwen"` or `"llava"`."""
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
