# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Encoded prompts with images: equal ones are processed once for a batch, and moved to the device when needed."""

import torch

from trl_opsd.batches.pixels import ImageCache, ImageInputs
from trl_opsd.prompts.tokenizer import PromptTokenizer


def test_a_batch_processes_equal_prompts_once():
    processed, moved = [], []

    def encode(text, image, cache):
        def process():
            processed.append((text, image))
            return {"input_ids": torch.tensor([[len(processed), 5]]), "pixel_values": torch.ones(1), "other": 1}

        return inputs.encode(text, [image], process, cache)

    inputs = ImageInputs(None, lambda tensors: moved.append(tensors) or {**tensors, "moved": True})
    cache = ImageCache()
    ids, seen = encode("What?", "a", cache)
    assert ids == [1, 5] and seen.images == ["a"] and seen.tensors.keys() == {"pixel_values"}
    ids.append(9)  # the caller's own list
    same, same_seen = encode("What?", "a", cache)
    assert same == [1, 5] and same_seen is seen and len(processed) == 1
    assert encode("Who?", "a", cache)[1] is seen, "another text shares the images"
    assert encode("What?", "b", cache)[1] is not seen
    assert processed == [("What?", "a"), ("Who?", "a"), ("What?", "b")]
    assert not moved and seen.pixels is seen.pixels and len(moved) == 1
    assert encode("What?", "a", ImageCache())[1] is not seen, "a cache is that of its batch"


def test_a_prompt_without_images(tokenizer):
    made = PromptTokenizer(tokenizer, tokenizer, None)
    ids, seen = made.encode("Q", None, {})
    assert ids == made.prompt("Q", None, {}) and seen.images == [] and seen.pixels == {}
