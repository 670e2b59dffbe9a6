# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Images within chat messages: which there are, and whether two lists hold the same pictures."""

import hashlib
from typing import Any

import torch
from datasets import Image as ImageFeature

from trl_opsd.rollouts.rollout import Messages


def images_of(prompt: str | Messages) -> list[Any]:
    """Images in a prompt or completion, in order."""
    contents = [] if isinstance(prompt, str) else [message.get("content") for message in prompt]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    return [block["image"] for block in blocks if block.get("type") == "image" and block.get("image") is not None]


def decoded(image: Any) -> Any:
    """An image as processors take it, where a data set hands out its file."""
    return ImageFeature().decode_example(image) if isinstance(image, dict) else image


def same_images(one: list[Any], other: list[Any]) -> bool:
    """Whether two lists hold the same pictures, be they the same objects or not."""
    if len(one) != len(other):
        return False
    return all(a is b or image_content(a) == image_content(b) for a, b in zip(one, other, strict=True))


def image_content(image: Any) -> str:
    """Identity of a picture, the same for equal ones: a hash, or its address."""
    if hasattr(image, "getpalette"):  # Pillow's, which is no requirement for text
        return hashlib.sha256(f"{image.mode} {image.size} {image.getpalette()}".encode() + image.tobytes()).hexdigest()
    if isinstance(image, str):
        return image
    array = torch.as_tensor(image)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.numpy().tobytes()).hexdigest()
